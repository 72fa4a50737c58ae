"""An engine without a model: the interface the command line uses, answering in a few scripted steps."""

from __future__ import annotations

from types import SimpleNamespace

from lad_engine.config import EngineConfig, SamplingParams
from lad_engine.contracts import AdapterFacts, GenerationResult, StepEvent
from lad_engine.text.prompts import Prompt

MASK, END = 0, 1
PIECES = {MASK: "MASK", END: "<end>", 2: "The", 3: " capital", 4: " is", 5: " Paris", 6: " Rome", 7: "\n", 8: "\x1b[31m", 9: "é"}
# Predictions of three steps; the fourth position is masked again after the first one and changes.
PREDICTED = ((2, 3, 4, 6, 1, 1), (2, 3, 4, 5, 1, 1), (2, 3, 4, 5, 1, 1))
MASKED = ({1, 3, 5}, {3}, set())


class FakeCodec:
    """Ids of PIECES; a word that is not one of them is id 9."""

    bos_id, eos_id = None, END

    def piece(self, index: int) -> str:
        return PIECES[index]

    def encode(self, text: str) -> list[int]:
        return [9 for _ in text.split()]

    def render_chat(self, messages, add_generation_prompt=True) -> str:
        return " ".join(f"<{message['role']}> {message['content']}" for message in messages)


class FakeOps:
    """The table --verbose prints."""

    def table(self) -> str:
        return "renoise  cpu  best on cpu"


class FakeEngine:
    """Answers every prompt with "The capital is Paris"; keeps what it was called with."""

    mask_id, eos_ids, load_ms, driver = MASK, (END,), 12.5, "replay"

    def __init__(self, fails: Exception | None = None, after: int = 99) -> None:
        self.codec, self.ops, self.config = FakeCodec(), FakeOps(), EngineConfig()
        self.facts = SimpleNamespace(name="tiny", max_positions=512)
        self.adapter_facts = AdapterFacts("ours", 4, 4.0, ("q_proj",), "MASK", MASK, profile="paper")
        self.fails, self.after = fails, after
        self.batches: list[list[Prompt]] = []
        self.params: SamplingParams | None = None
        self.load_arguments: dict = {}

    def memory_plan(self, prompts, params=None):
        """Name the batch it is asked about."""
        return SimpleNamespace(sentence=lambda: f"memory of a batch of {len(prompts)}")

    def load(self, model=None, adapter="default", config=None, progress=None):
        """Stand in for Engine.load."""
        self.load_arguments = {"model": model, "adapter": adapter, "config": config}
        for done in range(3):
            progress("loading weights", done, 2)
        return self

    def sampling(self, profile=None, **settings) -> SamplingParams:
        return SamplingParams.from_mapping({"steps": 3, "max_new_tokens": 6, "profile": profile or "paper", **settings})

    def drift(self):
        return SimpleNamespace(sentence=lambda: "drift: 0.001 at most")

    def generate(self, prompts, params=None):
        return [item for item in self.stream(prompts, params) if isinstance(item, GenerationResult)]

    def stream(self, prompts, params=None):
        prompts = [prompts] if isinstance(prompts, (str, Prompt)) else list(prompts)
        self.batches.append(prompts)
        self.params = params
        for step in range(3):
            if self.fails is not None and step == self.after:
                raise self.fails
            for index in range(len(prompts)):
                yield self._event(index, step)
        if self.fails is not None and self.after >= 3:
            raise self.fails
        for prompt in prompts:
            yield self._result(prompt, params or self.sampling())

    def _event(self, index: int, step: int) -> StepEvent:
        predicted = PREDICTED[step]
        tokens = tuple(MASK if position in MASKED[step] else token for position, token in enumerate(predicted))
        return StepEvent(
            index=index,
            step=step,
            steps=3,
            token_ids=tokens,
            predicted_ids=predicted,
            confidences=(0.9, 0.5, 0.1, 0.3, 1.0, float("nan")),
            status=tuple("masked" if token == MASK else "new" if step == 0 else "changed" if token == 5 else "settled" for token in tokens),
            is_last=step == 2,
            elapsed_ms=100.0 * (step + 1),
            text="".join(PIECES[token] for token in tokens if token not in (MASK, END)),
        )

    def _result(self, prompt, params: SamplingParams) -> GenerationResult:
        return GenerationResult(
            text="The capital is Paris",
            token_ids=PREDICTED[2],
            confidences=(0.9, 0.5, 0.1, 0.3, 1.0, float("nan")),
            step_map=((0, 0), (1, 1), (0, 0), (2, 2), (0, 0), (1, 1)),
            nfe=3,
            tpf=4 / 3,
            steps=3,
            stopped_early=False,
            finish_reason="eos",
            timings={"first_step_ms": 100.0, "total_ms": 300.0},
            model="tiny",
            adapter="ours",
            profile=params.profile,
            seed=params.seed,
            dtype="float32",
            device="cpu",
            ops={"renoise": "cpu"},
        )
