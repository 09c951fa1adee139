#!/usr/bin/env bash
# Sets up the project, the first time only, and runs the staged pipeline: src/clipfh/pipeline/run_all.py.
# `bash run_all.sh --help` says more.
set -euo pipefail
root=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
export PYTHONPATH="$root/src${PYTHONPATH:+:$PYTHONPATH}"

# help and wrong options need no set-up: any Python reads them
any_python=$(bash "$root/set_up.sh" --find)
"$any_python" -m clipfh.pipeline.options "$@"
case " $* " in *" --help "* | *" -h "*) exit ;; esac

project_python=$(bash "$root/set_up.sh" parts)
exec "$project_python" -m clipfh.pipeline.run_all "$@"
