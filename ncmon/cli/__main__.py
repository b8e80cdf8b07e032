"""`python -m ncmon.cli` is `ncmon`."""

from ncmon.cli import main

if __name__ == "__main__":
    main(prog_name="ncmon")
