"""`python -m octavo_server.engine`: the engine process, started by the API process."""

import sys

from octavo_server.engine_process import main

sys.exit(main())
