"""Run directory to HTML page, tables and live viewer.  Reads files only."""
