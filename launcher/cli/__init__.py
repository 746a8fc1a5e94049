"""The shell's surface: verbs, tables, progress."""
