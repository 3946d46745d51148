"""Missing runs, trained as tasks of a Ray cluster; README.md beside this says how to start one."""
