"""The command line: commands, study files, and tables on the console."""
