"""`python -m ant_hf`: the `ant-hf` command where it is not on the path."""

from ant_hf.cli.main import main

# Worker processes import this file too.
if __name__ == "__main__":
    main()
