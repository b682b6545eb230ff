"""A process of heatpipe's own: its streams, its signals, how it ends, and what it asks of libraries not loaded yet.

Imports next to nothing: an interrupt or a fault that comes before `guard_process` still ends in a traceback.
"""

import errno
import io
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from queue import SimpleQueue
from types import FrameType, TracebackType
from typing import Any, Final, NoReturn, TextIO

from heatpipe.errors import ConfigError, HeatpipeError

DONE: Final = 0
FAILED: Final = 1
USAGE: Final = 2
UNSOUND: Final = 3
INTERRUPTED: Final = 130

WISHES: Final = {
    # pyarrow's own allocator keeps what it has freed: 50 MiB more, and no less time.
    "ARROW_DEFAULT_MEMORY_POOL": "system",
    # numpy's linear algebra, of which heatpipe uses none, would start threads that wait for work by spinning.
    "OPENBLAS_NUM_THREADS": "1",
}
LEAVE_S: Final = 5.0
"""Writing what has arrived takes a second or two. A signal that comes later than this after the first ends the process
at once: then the disk hangs."""
ENDING_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
VERBOSE: Final = "--verbose"
SAID_MOST: Final = 500
"""Characters that a foreign error may say."""


def prepare_process() -> None:
    """Set what the user has not set. To be called before numpy and pyarrow are imported."""
    for name, value in WISHES.items():
        os.environ.setdefault(name, value)


def run_process(command: Callable[[], int], *, leave_s: float = LEAVE_S, in_order: bool = False) -> NoReturn:
    """Call a command and end the process with the exit code of the contract.

    Parameters
    ----------
    command : callable
        Returns an exit code, or raises.
    leave_s : float
        How long after a first signal a further one does nothing.
    in_order : bool
        After an interrupt, too, let libraries do what they have put off until the end.
    """
    guard_process(leave_s=leave_s)
    code = call(command)
    _SIGNALS.ended = True
    code = _flush(code)
    if code == INTERRUPTED and not in_order:
        # A thread that still waits for the network must not keep the process, nor fall over its end.
        os._exit(code)
    sys.exit(code)


def guard_process(*, leave_s: float = LEAVE_S) -> None:
    """See to it that no signal, no closed or full stream, and no fault ends in a traceback. For main programs."""
    _SIGNALS.leave_s = leave_s
    if _SIGNALS.caught:
        return
    _SIGNALS.catch()
    sys.excepthook = _end_of_uncaught
    sys.unraisablehook = _lose_no_interrupt
    threading.excepthook = _say_lost_thread
    _hold_descriptors()
    sys.stdout, sys.stderr = _printable(sys.stdout, 1), _printable(sys.stderr, 2)


def call(command: Callable[[], int]) -> int:
    """Call a command; whatever ends it becomes one line on stderr and an exit code."""
    try:
        return command()
    except (SystemExit, GeneratorExit):
        raise
    except BaseException as exc:  # noqa: BLE001 - Rust's panics are no Exception
        return _say_end(exc)


@contextmanager
def on_interrupt(react: Callable[[], None]) -> Iterator[None]:
    """Let the first signal call something, in place of a KeyboardInterrupt in the middle of whatever is done.

    Where `guard_process` was not called, the block's signals are not its business: nothing happens.

    Parameters
    ----------
    react : callable
        Called in a thread of its own, so that it may take locks.

    Raises
    ------
    KeyboardInterrupt
        At the end of a block that raises nothing, if a signal has come.
    """
    if not _SIGNALS.caught or threading.current_thread() is not threading.main_thread():
        yield
        return
    told: SimpleQueue[bool] = SimpleQueue()  # its put may interrupt a put

    def watch() -> None:
        if told.get():
            react()

    threading.Thread(target=watch, name="heatpipe-interrupt", daemon=True).start()
    with _SIGNALS.telling(told):
        yield


class _Signals:
    """What comes of SIGINT, SIGTERM and SIGHUP: the first one counts, the others neither hurt nor hurry."""

    def __init__(self) -> None:
        self.caught = False
        self.first_at: float | None = None
        self.ended = False
        self.leave_s = LEAVE_S
        self._told: SimpleQueue[bool] | None = None

    def catch(self) -> None:
        """Take the signals over, but those that are ignored, as nohup has it."""
        self.caught = True
        for number in ENDING_SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._receive)

    @contextmanager
    def telling(self, told: "SimpleQueue[bool]") -> Iterator[None]:
        self.catch()  # Prefect has its own for SIGTERM, which raise with each
        self._told, outer = told, self._told
        if self.first_at is not None:  # one that some library has swallowed
            told.put(True)
        try:
            yield
        finally:
            self._told = outer
            told.put(False)
        if self.first_at is not None:
            raise KeyboardInterrupt

    def interrupt_again(self) -> None:
        """Have a KeyboardInterrupt once more, in a moment: the first one was raised where nobody can catch it."""
        signal.signal(signal.SIGALRM, self._receive)
        signal.setitimer(signal.ITIMER_REAL, 0.05)

    def _receive(self, number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGALRM:
            self.first_at = None
        now = time.monotonic()
        if self.first_at is None:
            self.first_at = now
            if self._told is not None:
                self._told.put(True)
            elif not self.ended:
                raise KeyboardInterrupt
        elif now - self.first_at >= self.leave_s:
            show_cursor = b"\x1b[?25h" if os.isatty(2) else b""
            with suppress(OSError):
                os.write(2, show_cursor + b"heatpipe: interrupted once more, and ended at once\n")
            os._exit(INTERRUPTED)


_SIGNALS: Final = _Signals()


# Ends


def _say_end(exc: BaseException) -> int:
    """Say in one line what has ended a command; return the exit code."""
    said, code = describe(exc)
    if isinstance(exc, KeyboardInterrupt) or _SIGNALS.first_at is not None:
        # Some libraries make another error of an interrupt; but what could not be written then is to be told.
        told = said if isinstance(exc, (KeyboardInterrupt, HeatpipeError, OSError)) else ""
        said, code = "; ".join(["interrupted", *([told] if told else [])]), INTERRUPTED
    elif VERBOSE in sys.argv and not isinstance(exc, HeatpipeError):
        _print_traceback(exc)
    if said:
        _say(f"heatpipe: {said}")
    return code


def describe(exc: BaseException) -> tuple[str, int]:
    """Return what to say, in one line, of what has ended something, and the exit code that goes with it."""
    if isinstance(exc, KeyboardInterrupt):
        return "; ".join(map(str, exc.args)), INTERRUPTED
    if isinstance(exc, HeatpipeError):
        return str(exc), USAGE if isinstance(exc, ConfigError) else FAILED
    if isinstance(exc, BrokenPipeError):
        return "", FAILED
    if isinstance(exc, MemoryError):
        return "there is not enough memory: free some, or raise the limit (ulimit -v)", FAILED
    if isinstance(exc, OSError):
        hint = "; raise the limit (ulimit -n)" if exc.errno in (errno.EMFILE, errno.ENFILE) else ""
        return f"{exc.filename or 'the system'}: {exc.strerror or exc}{hint}", FAILED
    text = _without_key(" ".join(str(exc).split()))[:SAID_MOST]
    if isinstance(exc, RuntimeError) and "start new thread" in text:
        return "no thread can be started: raise the limit of processes (ulimit -u) or of memory (ulimit -v)", FAILED
    if isinstance(exc, ImportError):
        return f"a library cannot be loaded: {text}; is it installed, and is there enough memory?", FAILED
    name = type(exc).__name__
    return f"unexpected {name}{': ' if text else ''}{text}; {VERBOSE} shows the traceback", FAILED


def _print_traceback(exc: BaseException) -> None:
    import traceback

    with suppress(Exception):
        print(_without_key("".join(traceback.format_exception(exc))), end="", file=sys.stderr, flush=True)


def _say(line: str) -> None:
    """Print one line to stderr, whatever stands in it."""
    shown = "".join(" " if ord(c) < 32 or 127 <= ord(c) < 160 else c for c in _without_key(line))
    with suppress(Exception):  # nobody is left to be told
        print(shown, file=sys.stderr, flush=True)


def _without_key(text: str) -> str:
    """Return a text without the environment's key: it may have been given where it does not belong."""
    from heatpipe.redaction import KEY_VARIABLE, SURE_CHARACTERS, Redactor, Secret

    key = os.environ.get(KEY_VARIABLE, "").strip()
    if len(key) < SURE_CHARACTERS or not (key.isascii() and key.isprintable()):
        return text  # it is none; and a letter would be found in every word
    return Redactor(Secret(key)).clean(text)


def _end_of_uncaught(_type: type[BaseException], exc: BaseException, _traceback: TracebackType | None) -> None:
    """End the process of what came while nothing caught it, such as an interrupt during an import."""
    _SIGNALS.ended = True
    os._exit(_flush(_say_end(exc)))


def _lose_no_interrupt(lost: "sys.UnraisableHookArgs") -> None:
    """Raise an interrupt again that came in a destructor; of all else that goes wrong there, say nothing."""
    if isinstance(lost.exc_value, KeyboardInterrupt) and not _SIGNALS.ended:
        _SIGNALS.interrupt_again()
    elif VERBOSE in sys.argv and lost.exc_value is not None:
        _print_traceback(lost.exc_value)


def _say_lost_thread(lost: threading.ExceptHookArgs) -> None:
    """Say in one line what has ended a thread that nobody waits for, a library's."""
    if lost.exc_value is not None and not _SIGNALS.ended:
        _say(f"heatpipe: in the background: {describe(lost.exc_value)[0]}")
        if VERBOSE in sys.argv:
            _print_traceback(lost.exc_value)


# Streams


class _Sink(io.RawIOBase):
    """A stream's end that keeps the first fault to itself: what cannot be printed must not end what is done.

    Attributes
    ----------
    fault : OSError or None
        Why nothing has been written since.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self.fault: OSError | None = None

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._descriptor

    def isatty(self) -> bool:
        return os.isatty(self._descriptor)

    def write(self, data: Any) -> int:
        while self.fault is None:
            try:
                return os.write(self._descriptor, data)
            except BlockingIOError:  # who started us has made the pipe so
                select.select([], [self._descriptor], [])
            except OSError as exc:
                self.fault = exc
        return len(data)


def _hold_descriptors() -> None:
    """Open what was closed by who started us, as cron may: else the next file gets the number, and what is printed."""
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest number that is free


def _printable(stream: TextIO | None, descriptor: int) -> TextIO:
    """Return a stream that takes every character, and raises nothing."""
    return io.TextIOWrapper(
        io.BufferedWriter(_Sink(descriptor)),
        encoding=getattr(stream, "encoding", None) or "utf-8",
        errors="backslashreplace",
        line_buffering=descriptor == 2 or getattr(stream, "line_buffering", False),
        write_through=getattr(stream, "write_through", False),
    )


def _flush(code: int) -> int:
    """Print what is left; a command whose words were lost has failed."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):  # a stream of somebody else's
            stream.flush()
    fault = _fault_of(sys.stdout)
    if fault is None or code != DONE:
        return code
    if not isinstance(fault, BrokenPipeError):  # whoever read it wanted no more
        _say(f"heatpipe: stdout cannot be written: {fault.strerror}")
    return FAILED


def _fault_of(stream: TextIO) -> OSError | None:
    raw = getattr(getattr(stream, "buffer", None), "raw", None)
    return raw.fault if isinstance(raw, _Sink) else None
