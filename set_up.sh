#!/usr/bin/env bash
# Finds or makes the Python environment of the project. The interpreter to use is the only thing printed to stdout.
#
#   bash set_up.sh             what run_all.sh needs
#   bash set_up.sh test lint   with these extras of pyproject.toml
#   bash set_up.sh --find      only the Python that it would use
#   PYTHON=/path/to/python bash set_up.sh
#
# This script only looks for a Python that is new enough; project_environment.py does the rest.
set -euo pipefail
root=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)

if [ -n "${PYTHON:-}" ]; then
    candidates=("$PYTHON")
else
    candidates=(python3 python3.11 python3.12 python3.13 python3.10 python)
fi
for candidate in "${candidates[@]}"; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 10))' >/dev/null 2>&1; then
        if [ "${1:-}" = --find ]; then command -v "$candidate" && exit; fi
        exec "$candidate" "$root/project_environment.py" "$@"
    fi
done

echo "error: no Python 3.10 or newer found (tried: ${candidates[*]})." >&2
echo "Install one, or name it: PYTHON=/path/to/python3.11 bash run_all.sh" >&2
exit 2
