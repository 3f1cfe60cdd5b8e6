"""argv becomes one call. Torch is imported by the verb that needs it, so that help answers at once."""

import json
import sys
import threading
from argparse import Namespace
from collections.abc import Sequence
from typing import NoReturn

from pipeline.cli.arguments import parse
from pipeline.cli.verbs.verb import Verb
from pipeline.common import console, signals
from pipeline.common.errors import RankLost, Stopped, UserError, refusals_as_sentences, refused


def run(argv: Sequence[str]) -> int:
    """Do what the command line says; return the exit code. A bug raises."""
    verb, arguments = parse(argv)
    hook, threading.excepthook = threading.excepthook, _say_how_a_thread_ended
    code = None
    try:
        with signals.raising():
            code = _run(verb, arguments)
    except (
        Stopped
    ) as stopped:  # a signal that came when the verb had ended, as a launcher sends it to other ranks
        return stopped.exit_code if code is None else code
    finally:
        threading.excepthook = hook
    return code


def _run(verb: Verb, arguments: Namespace) -> int:
    try:
        with refusals_as_sentences():
            result = verb.run(arguments)
            if result:  # ranks other than the first have none
                console.put_out(json.dumps(result))
    except (UserError, RankLost) as error:
        if not error.said:
            console.fail(str(error))
        return error.exit_code
    except Stopped as stopped:
        console.say(str(stopped))
        return stopped.exit_code
    except KeyboardInterrupt:
        console.say("stopped by SIGINT; the same command resumes")
        return Stopped.exit_code
    if result and (result.get("go") is False or result.get("holds") is False or result.get("refused")):
        return UserError.exit_code
    return 0


def _say_how_a_thread_ended(ended: threading.ExceptHookArgs) -> None:
    """The sentence for what the system refuses a library's thread; a bug keeps its traceback."""
    sentence = refused(ended.exc_value) if ended.exc_value else None
    if sentence is None:
        threading.__excepthook__(ended)
    else:
        console.warn(str(sentence))


def main() -> NoReturn:
    """Entry point of `plumage` and of `python -m pipeline`."""
    sys.exit(run(sys.argv[1:]))
