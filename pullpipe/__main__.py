"""`python -m pullpipe`."""

from pullpipe.cli import program

if __name__ == "__main__":
    program()
