"""From a folder of photographs and a table of labels to batches on the device."""

import os
import signal
import sys

if sys.argv[:1] == ["-m"] and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    # A command is on its way: until `command` listens, Ctrl-C ends it without a traceback.
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))
