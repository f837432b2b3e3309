"""`python -m syncflow` is the `syncflow` command; torchrun starts its ranks this way."""

from syncflow.cli import main

raise SystemExit(main())
