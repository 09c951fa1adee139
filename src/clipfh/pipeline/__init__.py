"""The steps behind `run_all.sh`, and sweeps over recipes: run, stamped, skipped when finished. No science."""
