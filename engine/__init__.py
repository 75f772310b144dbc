"""Model, training, evaluation, export and inference: a module for each verb that a user types."""

import os
import signal
import sys

if sys.argv[:1] == ["-m"] and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    # A command is on its way: until `engine.command` listens, Ctrl-C ends it without a traceback.
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))
