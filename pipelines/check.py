"""Check: find out before a run starts whatever can be known of it then, and say all of it at once.

`d2sm train` and `fit` check first; `d2sm train --dry-run` and `d2sm check` do nothing else. Nothing here starts Ray or
writes a file that stays; but the copy of a run at a URI is brought up to date. What only the nodes of a cluster know is
asked by `cluster.preflight`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from d2sm.objectives import TERMS
from pipelines.config import Config, ConfigError, keys_only_for, keys_with_code, typed
from pipelines.data import index, plan, splits
from pipelines.data.images import DataError
from pipelines.runs.folder import RunFolder, named
from pipelines.runs.results import level_title, metric_names
from pipelines.runtime.files import unwritable
from pipelines.runtime.owner import InUseError
from pipelines.text import counted, did_you_mean, listed, one_line, redact, show

if TYPE_CHECKING:
    from pipelines.evaluate import Subject

Answer = str | Exception  # of a check: what was found, or a reason against the run
_LONGEST_METRIC = 240  # characters; MLflow takes 250, and noisy. stands before some
_MEASURING = ("data", "noise", "degrade", "evaluate")  # the sections that an evaluation reads,
_OF_EVALUATION = ("tracking.uri", "tracking.experiment", "train.storage", "train.gpus_per_worker")  # and these keys
_REGISTERING = ("tracking.register_as", "tracking.alias")


class NotReady(ValueError):
    """Several reasons against a run, in `reasons`; each is one line. A single reason is raised as it is."""

    def __init__(self, *reasons: str) -> None:
        super().__init__("\n".join(reasons))
        self.reasons = str(self).split("\n")  # also after pickling, which keeps the text alone


@dataclass(frozen=True)
class Check:
    """One check: what was found or, if it failed, what is wrong and the remedy."""

    name: str
    ok: bool
    answer: str

    def __str__(self) -> str:
        return f"{'ok    ' if self.ok else 'FAILED'}  {self.name:<10}  {self.answer}"


@dataclass(frozen=True)
class Ready:
    """A run that nothing speaks against, as far as can be known before it starts.

    Attributes:
        config: the configuration with what was settled by itself (see `splits.settled`), and with a run name.
        training: the index of its training images.
        fingerprint: of these.
        subject: of the evaluation, and of the validation while training; None if there is neither.
    """

    config: Config
    training: pa.Table
    fingerprint: str
    subject: Subject | None


def check(
    config: Config,
    *,
    evaluates: bool = True,
    given: Collection[str] = (),
    say: Callable[[str], None] = show,
    tell: Callable[[Check], None] = lambda check: None,
) -> Ready:
    """Check everything that a run needs and that can be known without Ray.

    Args:
        evaluates: whether the run is evaluated, and registered if asked, after its training.
        given: keys whose values somebody asked for (see `splits.settled` and `unused`).
        say: is told what was settled by itself, a line each.
        tell: is told each check when it is done, the quick ones first.

    Raises:
        ConfigError, DataError, SegmenterError, RegistryError, TrackingError, ResourceError, OSError, ValueError: the
            only reason against the run, one line.
        InUseError: another process trains or evaluates the run of this name; nothing else is checked then.
        NotReady: several reasons.
    """
    settled: list[str] = []
    reasons: list[Exception] = []
    try:
        config, settled = splits.settled(config, given=given)
        config = named(config)
    except (ValueError, OSError) as error:
        reasons.append(error)
        tell(Check("data", False, one_line(error, None)))
    try:
        _refuse_in_use(config)
    except InUseError as error:  # what is wrong with a run that goes on elsewhere is that one's affair
        tell(Check("run", False, one_line(error, None)))
        raise
    for reason in unused(config, given):
        reasons.append(reason)
        tell(Check("keys", False, one_line(reason, None)))
    run = _Run(config, given)
    for name, answers in run.checks(evaluates):
        found = list(answers)
        for answer in found:
            reasons += [answer] if isinstance(answer, Exception) else []
            tell(Check(name, not isinstance(answer, Exception), one_line(answer, None)))
    refuse(reasons)
    assert run.training is not None  # else there was a reason
    if line := splits.held_out_line(config, run.training):
        settled.append(line)
    settled += run.notes
    settled += run.subject.notes if run.subject else ()
    for line in settled:
        say(line)
    return Ready(config, run.training, run.fingerprint, run.subject)


def unused(config: Config, given: Collection[str], varied: Collection[str] = ()) -> Iterator[ConfigError]:
    """The keys that somebody asked for and that nothing would use.

    Recipes and saved configurations may hold such keys, so a configuration itself is not refused for them.

    Args:
        config: with what was settled by itself.
        given: the keys whose values somebody asked for; a default that somebody asked for is no reason.
        varied: keys that take further values, such as those of a sweep's space, which may use others.
    """
    values, defaults = config.flat(), Config().flat()
    asked = {key for key in given if values.get(key) != defaults.get(key)}
    for key, others in keys_only_for().items():
        if key in asked and not any(values[other] or other in varied for other in others):
            why = "none of which is set; set one of them" if len(others) > 1 else "which is not set; set it"
            yield ConfigError(f"{key}={values[key]}: is for {', '.join(others)}, {why}, or leave {key} out")
    if "train.halve_at" in asked and config.train.schedule != "halve" and "train.schedule" not in varied:
        yield ConfigError(
            f"train.halve_at={values['train.halve_at']}: is for train.schedule=halve, but it is "
            f"{config.train.schedule}; change it, or leave train.halve_at out"
        )
    if "train.max_failures" in asked and config.train.local:
        yield ConfigError(
            f"train.max_failures={values['train.max_failures']}: restarts lost workers, and train.num_workers=0 has "
            "none; give 1 worker or more, or leave train.max_failures out"
        )
    if "evaluate.sigmas" in given:
        sigmas = f"evaluate.sigmas={values['evaluate.sigmas']}"
        if config.data.layout == "pairs":
            yield ConfigError(f"{sigmas}: the images of data.layout=pairs are degraded already; leave it out")
        elif config.evaluate.levels is not None:
            levels = f"[{', '.join(config.evaluate.levels)}]"
            yield ConfigError(f"{sigmas}: evaluate.levels={levels} sets the levels too; give one of the two keys")


def unused_untested(config: Config, given: Collection[str]) -> Iterator[ConfigError]:
    """The keys that somebody asked for and that only an evaluation after the training would use, where there is none.

    Args:
        config, given: as for `unused`.
    """
    for key, value in config.flat().items():
        registers = key == "tracking.register_as"
        measures = key.startswith("evaluate.") and config.train.validate_every is None
        if key in given and value and (registers or measures):
            remedy = "; `d2sm models register RUN` registers a run that is evaluated" if registers else ""
            yield ConfigError(
                f"{key}={typed(value)}: is for the evaluation after the training, which --no-evaluate leaves out; "
                f"leave out one of the two{remedy}"
            )


def unused_in_evaluation(config: Config, given: Collection[str]) -> Iterator[ConfigError]:
    """The keys that somebody asked for and that the evaluation of a finished run does not use; arguments as above."""
    used = {*_OF_EVALUATION, *keys_with_code()}  # a key with code is also typed to vouch for it (see `runs.trust`)
    for key, value in config.flat().items():
        if key in given and key.partition(".")[0] not in _MEASURING and key not in used:
            remedy = "`d2sm models register RUN --as NAME` registers a model" if key in _REGISTERING else "leave it out"
            yield ConfigError(f"{key}={typed(value)}: an evaluation does not use this key; {remedy}")


def check_used(runs: Iterable[tuple[Config, Collection[str]]]) -> None:
    """Refuse the keys that somebody asked for and that none of several runs would use.

    Args:
        runs: their configurations, with what was settled by itself, and for each the keys whose values somebody asked
            for.

    Raises:
        ConfigError: a key that none uses.
        NotReady: several such keys.
    """
    found = [{str(reason): reason for reason in unused(config, given)} for config, given in runs]
    if found:
        refuse([reason for text, reason in found[0].items() if all(text in other for other in found)])


def refuse(reasons: Sequence[Exception]) -> None:
    """Raise what was found: nothing for none, a single reason as it is, several as one `NotReady`."""
    different = {one_line(reason, None): reason for reason in reasons}
    if len(different) == 1:
        raise next(iter(different.values()))
    if different:
        raise NotReady(*different)


def _refuse_in_use(config: Config) -> None:
    """Raise InUseError if another process trains or evaluates the run of this name."""
    with suppress(ConfigError, OSError):  # that the folder cannot be used is found by the checks
        folder = RunFolder.of(config)
        if folder.uri is None and folder.path.is_dir():
            with folder.owned():
                pass


class _Run:
    """The checks of one run; a later one may use what an earlier one found."""

    def __init__(self, config: Config, given: Collection[str]) -> None:
        self.config, self.given = config, given
        self.training: pa.Table | None = None
        self.fingerprint = ""
        self.evaluation: pa.Table | None = None
        self.subject: Subject | None = None
        self.notes: list[str] = []  # what the user should look at, a line each

    @cached_property
    def folder(self) -> RunFolder:
        """The run's, brought up to date where it is the copy of one at a URI. Raises ConfigError, RemoteError."""
        return RunFolder.of(self.config).refresh()

    def checks(self, evaluates: bool) -> Iterator[tuple[str, Iterable[Answer]]]:
        """The name and the answers of each check, those first that import little."""
        validates = self.config.train.validate_every is not None
        yield "data", self._attempts(self._training)
        if evaluates or validates:
            yield "evaluation", self._attempts(self._evaluation)
        yield "degrade", self._attempts(self._degradation)
        yield "model", self._attempts(self._model)
        yield "run", self._attempts(self._folder)
        yield "storage", self._attempts(self._storage)
        yield "tracking", self._attempts(self._tracking)
        if evaluates and self.config.tracking.register_as:
            yield "registry", self._attempts(self._registry)
        if self.config.train.init:
            yield "init", self._attempts(self._initial)
        yield "weights", self._attempts(self._objective)
        if evaluates or validates:
            yield "segmenter", self._attempts(self._segmenter)
        if validates:
            yield "validation", self._attempts(self._validation)
        yield "resources", self._attempts(self._resources)

    def _attempts(self, ask: Callable[[], Iterable[Answer]]) -> Iterator[Answer]:
        """The answers of a check; an error of bad input is one too."""
        try:
            yield from ask()
        except (ValueError, OSError) as error:
            yield error

    def _training(self) -> Iterator[Answer]:
        data = self.config.data
        known = self._known_fingerprint()
        items = splits.index_training(self.config)
        fingerprint = index.fingerprint(items)
        if known not in ("", fingerprint) and index.undivided(items) is not None:
            # An earlier version trained on all photographs of a root without splits; such a run goes on with them.
            whole = splits.index_training(self.config, hold_out=False)
            if index.fingerprint(whole) == known:
                items, fingerprint = whole, known
        self.training, self.fingerprint = items, fingerprint
        problems = list(splits.training_problems(self.config, items))
        yield from problems
        if not problems:
            steps = plan.total_steps(self.config, items.num_rows)
            yield (
                f"{counted(items.num_rows, 'photograph')} in {redact(data.root)}, layout {data.layout}, split "
                f"{data.train_split or 'all'}; {counted(steps, 'step')}"
            )

    def _known_fingerprint(self) -> str:
        """That of the run of this name, if there is one."""
        try:
            return self.folder.known_fingerprint()
        except (ValueError, OSError):  # the check of the run's folder says so
            return ""

    def _evaluation(self) -> Iterator[Answer]:
        self.evaluation = items = splits.evaluation_images(self.config)
        yield f"{counted(items.num_rows, 'photograph')}, split {self.config.data.val_split or 'all'}"

    def _degradation(self) -> Iterator[Answer]:
        from pipelines.data import degradation

        longest = max(metric_names(self.config, segmented=True), key=len)
        if len(longest) > _LONGEST_METRIC:
            yield ConfigError(
                f"evaluate.levels: the number {longest[:80]}... has a name of {len(longest)} characters, and MLflow "
                f"keeps {_LONGEST_METRIC} and a prefix; give a level of fewer steps, or functions with shorter names"
            )
        if line := self._unknown_sigma():
            yield ConfigError(line)
        degradation.check(self.config)
        what = "photographed pairs" if self.config.data.layout == "pairs" else self.config.degradation
        yield f"{what}; measured at {', '.join(map(level_title, self.config.level_names))}"

    def _unknown_sigma(self) -> str:
        """Why the chain does not do for a term that is trained against the true sigma; "" if it does.

        Not part of the configuration's own validation: runs of earlier versions are still opened.
        """
        config = self.config
        told = [name for name in config.loss.terms if "sigma" in TERMS[name].inputs]
        unknown = config.degradation.unknown_noise if config.data.layout != "pairs" else ()
        if not told or not unknown:
            return ""
        return (
            f"loss.{TERMS[told[0]].weight_key}={config.loss.terms[told[0]]:g}: compares with the true noise level, and "
            f"that of {listed(unknown)} in degrade.chain={config.degradation} is not known; set it to 0, or take noise "
            "of a known sigma, such as noise:0..50"
        )

    def _model(self) -> Iterator[Answer]:
        from pipelines.networks.models import check, is_random

        network = check(self.config)
        unknown = self.config.unknown_level(f"model.name={self.config.model.name}")
        if network and not network.blind and unknown:
            yield ConfigError(unknown)
        about = "" if network is None else f": {network.label}, {'blind' if network.blind else 'told sigma'}"
        if network and is_random(network):  # what is drawn is of a rank, not of a crop
            self.notes.append(
                f"model.name={self.config.model.name}: random in training (dropout), so other train.num_workers give "
                "another result"
            )
        yield f"{self.config.model.title}{about}"

    def _folder(self) -> Iterator[Answer]:
        if self.fingerprint:
            self.folder.check(self.config, self.fingerprint)
        yield self.folder.place

    def _storage(self) -> Iterator[Answer]:
        storage = self.config.train.storage
        if "://" in storage:
            yield f"{redact(storage)}, written to when the run starts"
            return
        top = Path(storage).absolute()
        there = next(folder for folder in (top, *top.parents) if folder.exists())
        if why := unwritable(there):
            remedy = "make it writable, or give another folder in train.storage"
            raise OSError(f"train.storage={storage}: {there}: {why}; {remedy}")
        yield f"{top} can be written"

    def _tracking(self) -> Iterator[Answer]:
        from pipelines.tracking import store

        uri = store.uri_of(self.config)
        store.check(uri)
        yield redact(uri)

    def _registry(self) -> Iterator[Answer]:
        from pipelines.registry import check_names

        tracking = self.config.tracking
        check_names(tracking.register_as, tracking.alias)
        yield f"registered as {tracking.register_as} after the evaluation"

    def _initial(self) -> Iterator[Answer]:
        from pipelines.training import initial

        if self.folder.latest() is not None:
            yield "the run goes on from its checkpoint, so train.init is not read again"
            return
        found = initial.read(self.config)
        yield f"{found.source} (weights {found.fingerprint}), {initial.ONLY}"

    def _objective(self) -> Iterator[Answer]:
        from pipelines.training.objective import check_objective

        loss = self.config.loss
        names = ", ".join(loss.phi_names)
        try:
            check_objective(self.config)
        except ValueError as error:
            if type(error) is not ValueError:
                raise  # it names its keys
            raise ConfigError(
                f"{one_line(error, None)} (the keys are loss.features={names} and loss.features_weights)"
            ) from None
        yield f"Phi is {names}" if loss.uses_phi else "no term uses Phi"

    def _segmenter(self) -> Iterator[Answer]:
        from pipelines import evaluate
        from pipelines.data.degradation import DegradationError
        from pipelines.tracking.segmenter import evaluation_judges

        names = [name for name, _ in self.config.evaluate.judges.values()]
        if self.evaluation is not None:
            try:
                self.subject = evaluate.check(self.config, self.evaluation)
                yield ", ".join(names) or "none, so PSNR and SSIM are measured, and no MIoU"
                return
            except DegradationError:
                pass  # a check of its own says it
            except DataError as error:
                yield error
        # Without images to measure, the segmenters alone; not one that is left out where there are no labels.
        if splits.segmenter_asked_for(self.config, self.given):
            evaluation_judges(self.config)

    def _validation(self) -> Iterator[Answer]:
        train = self.config.train
        if self.subject is None:  # another check says why
            yield "not checked, since the evaluation's images or segmenter cannot be used"
            return
        known = metric_names(self.config, segmented=bool(self.subject.segmenter))
        if train.best is not None and train.best not in known:
            hint = did_you_mean(train.best, known)
            if train.best.startswith("miou") and not self.subject.segmenter:
                hint = "; MIoU needs labels, and evaluate.segmenter"
            raise ConfigError(
                f"train.best={train.best}: not measured by this run's validation, which measures {listed(known, 12)}"
                f"{hint}"
            )
        count = min(train.validate_images or self.subject.items.num_rows, self.subject.items.num_rows)
        best = f", by {train.best}" if train.best else ""
        yield f"{count} of {self.subject.items.num_rows} photographs every {train.validate_every} steps{best}"

    def _resources(self) -> Iterator[Answer]:
        from pipelines.runtime import resources

        have = resources.on_this_machine(self.config)
        if have is None:
            yield "asked of the cluster when it is joined"
            return
        if reasons := list(resources.lacking(self.config, have)):
            yield from map(resources.ResourceError, reasons)
            return
        yield f"reserves up to {resources.run_cpus(self.config):g} CPU; Ray has {resources.listed(have)}"
