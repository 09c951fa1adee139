"""The steps behind `run_all.sh`: run, stamped, skipped when finished. No science, and the standard library only."""
