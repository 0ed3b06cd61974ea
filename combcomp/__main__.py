"`python -m combcomp` is the command `combcomp`"
from combcomp.cli import main

if __name__ == "__main__": raise SystemExit(main())
