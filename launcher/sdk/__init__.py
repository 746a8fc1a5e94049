"""The notebook's surface: submit, attach, Run."""
