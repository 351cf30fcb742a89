"""The server's side, run by Flower: it agrees on classes, averages, has the result judged, and
writes the bundle."""

import dataclasses
import os
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from flwr.serverapp import ServerApp
from numpy.typing import NDArray

from convert.data.dataset import images, labelled
from convert.errors import ConvertError
from convert.federation import plans
from convert.federation.messages import (
    ARRAYS,
    CONFIG,
    EXAMPLES,
    answers_of,
    arrays_record,
    ask,
    config_record,
    vector_of,
)
from convert.federation.server import proof
from convert.federation.server.agreement import Agreement, SiteFrames, agree
from convert.federation.server.average import SiteAverage
from convert.federation.server.proof import mean_of_means
from convert.federation.weights import Scale, mask, pack, scale_of, unpack
from convert.pipeline import ACCURACY_DROP_POINTS, BundleOptions, Judgement, build
from convert.sources import imagenet
from convert.sources.keras import from_keras
from convert.training import network
from convert.training.inputs import class_weights
from server.errors import StartError
from server.recognition.manifest import Manifest, VerdictPolicy
from server.values.labels import Label
from server.values.wording import counted

DETAILS = "federation.json"
# Of the averages of the head: what sites of unequal classes pull apart cancels out (Hsu, Qi and
# Brown, «Measuring the effects of non-identical data distribution», 2019, arXiv:1909.06335).
HEAD_MOMENTUM = 0.9
# Between two looks for sites; Flower's own pause is a second too.
_LOOK_SECONDS = 1.0
_FINISH_SECONDS = 60.0
# A round of a large site may take hours.
_ROUND_SECONDS = 24 * 3600

app = ServerApp()


@app.main()
def main(grid: Any, _context: Any) -> None:
    """Run the federation that the plan asks for, and leave its outcome beside the plan."""
    file = Path(os.environ[plans.SERVER_PLAN])
    plan = plans.read(file, plans.ServerPlan)
    federation = Federation(grid, plan, file.parent)
    try:
        outcome = federation.run()
    except (ConvertError, StartError) as error:
        code = error.exit_code if isinstance(error, ConvertError) else 1
        outcome = plans.Outcome(error=str(error), exit_code=code)
    except Exception as error:
        outcome = plans.Outcome(error=f"the training failed: {error!r}", exit_code=1)
        federation.say(traceback.format_exc())
        raise
    finally:
        federation.finish(outcome)
        plans.write(file.parent / plans.OUTCOME, outcome)


class Federation:
    """One federation, from its first message to the bundle. folder: of the plan."""

    def __init__(self, grid: Any, plan: plans.ServerPlan, folder: Path) -> None:
        self.grid, self.plan, self.folder = grid, plan, folder
        self.names: dict[int, str] = {}
        self.frames: dict[int, int] = {}
        self.progress = (folder / plans.PROGRESS).open("a", encoding="utf-8", buffering=1)

    def say(self, line: str) -> None:
        """Hand a line of text to the command that waits."""
        self.progress.write(f"{line}\n")

    def run(self) -> plans.Outcome:
        """Train and write the bundle. Raises ConvertError, GateError and BundleError."""
        plan, course = self.plan, self.plan.course
        agreement = self._agree()
        # Before the sites have worked for it.
        options = self._options(agreement)
        model = network.build(len(agreement.classes), course.alpha, course.size, course.weights)
        network.freeze(model, pretrained=course.weights in network.PRETRAINED)
        self._train(model, agreement)
        recipe = imagenet.recipe(course.size)
        float_model = from_keras(network.with_softmax(model))
        options = dataclasses.replace(options, input_means=self._means(float_model))

        def judge(made: bytes, manifest: Manifest) -> Judgement:
            return self._prove(agreement, made, float_model, manifest)

        folder = build(options.request(float_model, recipe, "probabilities"), self.say, judge=judge)
        bundle = f"{plan.name}/{folder.name}"
        return plans.Outcome(bundle=bundle, labels=agreement.classes, size=course.size)

    def finish(self, outcome: plans.Outcome) -> None:
        """Tell the sites how it ended; those that are gone are not waited for."""
        record = config_record(outcome=msgspec.json.encode(outcome).decode())
        ask(
            self.grid,
            list(self.grid.get_node_ids()),
            "query.finish",
            _FINISH_SECONDS,
            config=record,
        )
        self.progress.close()

    def _agree(self) -> Agreement:
        wanted, seen = self.plan.sites, -1
        while (here := len(nodes := sorted(self.grid.get_node_ids()))) < wanted:
            if here != seen:
                self.say(f"{here} of {wanted} sites are there")
                seen = here
            time.sleep(_LOOK_SECONDS)
        if here > wanted:
            raise ConvertError(f"{here} sites are there, but --sites {wanted} were expected")
        numbered = {node: str(place) for place, node in enumerate(nodes, 1)}
        answers = answers_of(ask(self.grid, nodes, "query.describe"), numbered)
        sites = []
        for node, content in answers.items():
            said = content.config_records[CONFIG]
            classes = list(said["classes"])
            sites.append(
                SiteFrames(
                    str(said["name"]),
                    dict(zip(classes, said["trained"], strict=True)),
                    dict(zip(classes, said["held"], strict=True)),
                )
            )
            self.names[node] = sites[-1].name
            self.frames[node] = sum(sites[-1].trained.values())
        agreement = agree(sites, allow_similar=self.plan.allow_similar_classes)
        for site in sites:
            what = ", ".join(f"{count} {name}" for name, count in site.trained.items() if count)
            held = counted(sum(site.held.values()), "frame")
            self.say(f"site {site.name} trains on {what}; it holds back {held}")
        return agreement

    def _options(self, agreement: Agreement) -> BundleOptions:
        plan = self.plan
        labels = tuple(Label(name) for name in agreement.classes)
        policy = VerdictPolicy(accept=plan.accept, min_probability=plan.min_probability)
        options = BundleOptions(
            labels=labels,
            name=plan.name,
            out=plan.out,
            version=plan.version,
            mode=plan.mode,
            source=plan.source
            or f"trained on {sum(agreement.counts)} frames that stayed at {plan.sites} sites",
            license=plan.license,
            validation=labelled(plan.validate, labels) if plan.validate else None,
            calibration=images(plan.calibrate) if plan.calibrate else None,
            verdict=policy if plan.accept else None,
            max_accuracy_drop=plan.max_accuracy_drop if plan.validate else None,
        )
        options.destination()
        return options

    def _train(self, model: Any, agreement: Agreement) -> None:
        course = self.plan.course
        common = {
            "course": msgspec.json.encode(course).decode(),
            "classes": list(agreement.classes),
            "class-weights": class_weights(agreement.counts).astype(float).tolist(),
        }
        if course.head_rounds:
            self.say("the last layer alone")
            head = model.get_layer(network.HEAD)
            scale = self._prepare(model, common)
            values = {**common, "scale": scale.to_bytes()}
            self._average("head", head, (), course.head_rounds, values, HEAD_MOMENTUM)
            head.set_weights(scale.folded(*head.get_weights()))
        if course.rounds:
            self.say("all layers")
            learned = {id(v) for v in model.trainable_variables}
            # Where the normalisation learns, so do its moving statistics.
            moving = course.weights not in network.PRETRAINED
            fixed = [i for i, v in enumerate(model.weights) if not moving and id(v) not in learned]
            self._average("all", model, fixed, course.rounds, common)

    def _prepare(self, model: Any, common: Mapping[str, Any]) -> Scale:
        """Have every site compute what the head learns from, and return its scale."""
        vector, config = arrays_record([pack(model.get_weights())]), config_record(**common)
        replies = ask(self.grid, self.names, "query.prepare", arrays=vector, config=config)
        answers = answers_of(replies, self.names).values()
        return scale_of(
            [(int(each.config_records[CONFIG][EXAMPLES]), vector_of(each)) for each in answers]
        )

    def _average(
        self,
        stage: str,
        part: Any,
        fixed: Sequence[int],
        rounds: int,
        common: Mapping[str, Any],
        momentum: float = 0.0,
    ) -> None:
        """Train the weights of a model or a layer in `rounds` rounds, but for those at `fixed`."""
        start = part.get_weights()
        strategy = SiteAverage(
            self.names,
            self.frames,
            mask(start, fixed),
            self.plan.course.peak_rate,
            rounds,
            momentum,
            self.say,
        )
        result = strategy.start(
            self.grid,
            arrays_record([pack(start)]),
            num_rounds=rounds,
            timeout=_ROUND_SECONDS,
            train_config=config_record(stage=stage, **common),
        )
        [values] = result.arrays.to_numpy_ndarrays()
        part.set_weights(unpack(values, [array.shape for array in start]))

    def _means(self, float_model: bytes) -> dict[int, NDArray[np.float64]]:
        """Have every site keep the float model, and tell the mean inputs of its operators."""
        record = arrays_record([np.frombuffer(float_model, np.uint8)])
        config = config_record(size=self.plan.course.size)
        replies = ask(self.grid, self.names, "query.means", arrays=record, config=config)
        sites = []
        for content in answers_of(replies, self.names).values():
            found = content.array_records[ARRAYS]
            means = {int(name): array.numpy() for name, array in found.items()}
            sites.append((int(content.config_records[CONFIG][EXAMPLES]), means))
        return mean_of_means(sites)

    def _prove(
        self, agreement: Agreement, made: bytes, float_model: bytes, manifest: Manifest
    ) -> Judgement:
        """Have every site judge both models on its held-back frames."""
        record = arrays_record([np.frombuffer(made, np.uint8)])
        assert manifest.recipe is not None
        config = config_record(
            classes=list(agreement.classes),
            size=self.plan.course.size,
            mode=manifest.quantization,
            dtype=manifest.recipe.dtype,
        )
        replies = ask(self.grid, self.names, "evaluate.prove", arrays=record, config=config)
        answers = answers_of(replies, self.names)
        classes = agreement.classes
        sites = [
            proof.read_proof(self.names[node], len(classes), content.config_records[CONFIG])
            for node, content in answers.items()
        ]
        for site in sites:
            hits = int(np.trace(site.result))
            self.say(f"site {site.name}: {hits} of {site.frames} held-back frames right")
        found = proof.report(sites, classes, len(made) / len(float_model))
        low, high = found.interval
        self.say(
            f"all sites: top-1 {found.top1:.2%} ({low:.1%} to {high:.1%}) of {found.images} frames,"
            f" float32 {found.top1_float:.2%}"
        )
        allowed = self.plan.max_accuracy_drop
        proof.check_drop(
            found, manifest.quantization, ACCURACY_DROP_POINTS if allowed is None else allowed
        )
        text = msgspec.json.format(msgspec.json.encode(proof.details(sites, classes)), indent=2)
        return Judgement(found, {DETAILS: text + b"\n"})
