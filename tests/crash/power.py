"""What a disk may hold after a power cut: every state that POSIX allows at any point of a recorded run. Pure.

The model is as forgetful as the standard lets a file system be, not as good as ext4 is:

* a name in a folder (made, replaced, removed) is certain once that folder was synced, and each name by itself;
  until then it may be any of what it has been since;
* the bytes of a file are certain once the file was synced; until then it may be empty, cut short or all zeros;
* to sync a file says nothing about its name, nor to sync a folder about the folder's own name.

A rename that replaces a file leaves the old file or the new one, as POSIX wants of it.
"""

import random
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Final

from tests.crash.launcher import Operation

RANDOM_STATES: Final = 3
"""How many mixtures are tried at each point, beside the extremes and the states with one thing lost or kept."""


@dataclass(slots=True, eq=False)
class File:
    """A file, whatever its names: all that its bytes may be, the certain ones first, the latest last."""

    contents: list[bytes] = field(default_factory=lambda: [b""])


@dataclass(frozen=True, slots=True)
class Folder:
    """What a name may stand for beside a file."""


FOLDER: Final = Folder()
Entry = File | Folder | None
Choices = dict[PurePosixPath | File, int]
"""How many there are, or which is taken, of all that a name or a file's bytes may be."""
State = Mapping[PurePosixPath, bytes | None]
"""What is there after the power cut: the bytes of each file, None for a folder."""


class Disk:
    """What is certain and what is not, after each operation.

    Parameters
    ----------
    state : mapping
        What is there before the run, all of it certain.
    """

    def __init__(self, state: State) -> None:
        # All that a name may stand for: the certain first, the latest last.
        self._names: dict[PurePosixPath, list[Entry]] = {
            path: [FOLDER if content is None else File([content])] for path, content in state.items()
        }

    def do(self, operation: Operation) -> None:
        """Let an operation happen."""
        path = PurePosixPath(operation.path)
        match operation.kind:
            case "mkdir":
                self._name(path, FOLDER)
            case "create":
                self._name(path, File())
            case "truncate":
                self._file(path).contents.append(b"")
            case "write":
                size = len(operation.content)
                self._file(path).contents += [operation.content[: size // 2], bytes(size), operation.content]
            case "link":
                self._name(path, self._file(PurePosixPath(operation.source)))
            case "rename":
                self._name(path, self._file(PurePosixPath(operation.source)))
                self._name(PurePosixPath(operation.source), None)
            case "remove" | "rmdir":
                self._name(path, None)
            case "fsync":
                self._sync(path)

    def _name(self, path: PurePosixPath, entry: Entry) -> None:
        self._names.setdefault(path, [None]).append(entry)

    def _file(self, path: PurePosixPath) -> File:
        entry = self._names[path][-1]
        assert isinstance(entry, File)
        return entry

    def _sync(self, path: PurePosixPath) -> None:
        latest = self._names.get(path, [FOLDER])[-1]
        if isinstance(latest, File):
            del latest.contents[:-1]
            return
        for name, entries in self._names.items():
            if name.parent == path:
                del entries[:-1]

    def states(self, dice: random.Random) -> Iterator[State]:
        """Yield what may be there if the power went now: the extremes, one thing lost, one thing kept, mixtures."""
        names: Choices = {name: len(entries) for name, entries in self._names.items() if len(entries) > 1}
        files: Choices = {file: len(file.contents) for file in self._files() if len(file.contents) > 1}
        choices = names | files
        oldest = dict.fromkeys(choices, 0)
        latest = {key: count - 1 for key, count in choices.items()}
        yield self._state(oldest)
        yield self._state(latest)
        yield self._state(latest | dict.fromkeys(files, 0))
        for key, count in choices.items():
            for choice in range(count):
                yield self._state(oldest | {key: choice})
                yield self._state(latest | {key: choice})
        for _ in range(RANDOM_STATES if choices else 0):
            yield self._state({key: dice.randrange(count) for key, count in choices.items()})

    def _files(self) -> set[File]:
        return {entry for entries in self._names.values() for entry in entries if isinstance(entry, File)}

    def _state(self, chosen: Mapping[PurePosixPath | File, int]) -> State:
        state: dict[PurePosixPath, bytes | None] = {}
        for name in sorted(self._names):  # a folder before what is in it
            entry = self._names[name][chosen.get(name, -1)]
            if entry is not None and (name.parent not in self._names or name.parent in state):
                state[name] = entry.contents[chosen.get(entry, -1)] if isinstance(entry, File) else None
        return state


def lose_power(before: State, operations: Iterable[Operation], seed: int = 0) -> Iterator[tuple[int, State]]:
    """Yield every state, once, that may be found after a power cut, with the number of operations done by then."""
    dice = random.Random(seed)
    disk = Disk(before)
    seen: set[int] = set()
    for number, operation in enumerate((Operation("nothing", ""), *operations)):
        disk.do(operation)
        for state in disk.states(dice):
            print_ = hash(frozenset(state.items()))
            if print_ not in seen:
                seen.add(print_)
                yield number, state


def least(before: State, operations: Iterable[Operation]) -> State:
    """Return what is there after a whole run if nothing survives that need not."""
    disk = Disk(before)
    for operation in operations:
        disk.do(operation)
    return next(disk.states(random.Random(0)))
