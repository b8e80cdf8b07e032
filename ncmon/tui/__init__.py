"""The terminal UI. `run_ui` is its one entry; importing this package loads no Textual."""
