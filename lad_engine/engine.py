"""The engine: one base, one adapter, and a straight line from prompts to answers; the only file that knows every room."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import torch

from .adapters.agreement import AgreementReport, PairedModel, save_agreement
from .adapters.drift import DriftReport, drift_report, save_drift
from .adapters.low_rank import Adapter
from .adapters.probe import SENTENCES
from .adapters.reader import read_adapter
from .adapters.report import save_report
from .adapters.resident import Chosen, Names, ResidentAdapters, each_name
from .adapters.store import Replaced, Resident
from .adapters.swap import AdapterSlot
from .config import AUTOREGRESSIVE_DEFAULTS, EngineConfig, SamplingParams, canonical_names
from .continuation import Continuation
from .contracts import AdapterFacts, Canvas, GenerationResult, ModelFacts, StepEvent
from .decoding import Decoding
from .denoisers.lad import LadDenoiser
from .errors import AdapterError, ConfigError
from .families import check_settings, default_profile
from .loading import Progress, adapt, checked_adapter, each_params, eos_ids_of, load_transformer, mask_id_of, resolve_config
from .model.language_model import LanguageModel
from .model.likelihood import Likelihood, score_text
from .model.precision import check_precision, quantise
from .model.weights import Checkpoint, open_checkpoint
from .ops import OpSet, rows_stand_alone, select_ops
from .profiles import TUNED, laid_over, profile_beside, profile_names, profile_params
from .requests import check_batch, lay_out_request, lay_out_scored
from .runtime.memory import MemoryPlan
from .runtime.readout import Outcome, read_event
from .runtime.runner import steps
from .text.answer import Answer, cut_answer
from .text.canvas import fixed_length
from .text.codec import TextCodec, load_tokenizer
from .text.prompts import Prompt

DEFAULT_ADAPTER = "default"


class Engine:
    """A loaded base with at most one adapter, ready to decode.

    Use `Engine.load`. `facts` describes the base, `adapter_facts` the adapter (None without one), `config` what the operator chose,
    `codec` the tokenizer, `load_ms` what loading took, `driver` how decodes run ("eager", "replay" or "loop"), `family` how the
    adapter (without one the base) is decoded: one of `families.DECODINGS`.
    """

    def __init__(
        self,
        model: LanguageModel,
        codec: TextCodec,
        checkpoint: Checkpoint,
        adapter: Adapter | None,
        config: EngineConfig,
        ops: OpSet,
        load_ms: float,
        residents: ResidentAdapters | None = None,
    ) -> None:
        self.model, self.codec, self.config, self.ops, self.load_ms = model, codec, config, ops, load_ms
        self.facts: ModelFacts = checkpoint.facts
        self.adapter_facts: AdapterFacts | None = adapter.facts if adapter is not None else None
        self._residents = residents
        shared = residents.shared if residents is not None else self.adapter_facts
        self.mask_id = shared.mask_id if shared else mask_id_of(codec, config, self.facts)
        self.eos_ids = eos_ids_of(self.facts, shared)
        self._checkpoint, self._slot = checkpoint, AdapterSlot(model.transformer, adapter, checkpoint.tensors)
        self.family = shared.decoding if shared is not None else self.facts.decoding
        self._decoding = Decoding(model, ops, config, self.facts, self.family)
        self._continuation: Continuation | None = None

    @classmethod
    def load(
        cls,
        model: str | Path | None = None,
        adapter: str | Path | None = DEFAULT_ADAPTER,
        config: EngineConfig | None = None,
        progress: Progress | None = None,
        adapters: Mapping[str, str | Path] | None = None,
        **settings: Any,
    ) -> Engine:
        """Load a base and an adapter.

        Args:
            model: a Hugging Face folder, hub id or GGUF file; None is the embedded default (SmolLM2-135M-Instruct).
            adapter: a PEFT folder, our single file, a hub id, "default" (the one shipped for the default base), or None.
            config: the operator's choices; `settings` are EngineConfig fields given directly (device=, dtype=, ...).
            progress: called with (label, done, total) while something long is loaded.
            adapters: several by name instead of one, unmerged; a request names its own (`generate(..., adapters=)`), or has the base.
        Raises:
            CheckpointError, AdapterError, DownloadError, OpsError, ConfigError: one sentence each.
        """
        started = time.perf_counter()
        if adapters:
            if adapter not in (None, DEFAULT_ADAPTER):
                raise ConfigError(f"adapter is {adapter} beside adapters, expected one or the other. Name it among the adapters.")
            adapter = None
        config = resolve_config(config or EngineConfig(), settings)
        ops = select_ops(config.ops, device=config.device, batch_invariant=bool(config.batch_invariant))
        check_precision(config.precision, torch.device(config.device), ops.chosen, bool(config.batch_invariant))
        # A path of the caller's is looked at before anything is downloaded.
        checkpoint = open_checkpoint(model, progress=progress) if model is not None else None
        if checkpoint is not None and checkpoint.facts.decoding != "lad" and adapter == DEFAULT_ADAPTER:
            # It decodes by itself; the default adapter makes a causal base do so.
            adapter = None
        loaded = read_adapter(_default_adapter() if adapter == DEFAULT_ADAPTER else adapter) if adapter is not None else None
        checkpoint = checkpoint or open_checkpoint(None, progress=progress)
        codec = load_tokenizer(checkpoint.folder)
        transformer = load_transformer(checkpoint, ops, config, progress)
        if loaded is not None:
            loaded = checked_adapter(loaded, transformer, codec, config, adapter == DEFAULT_ADAPTER)
            adapt(transformer, loaded, config)
        quantise(transformer, config.precision)
        residents = ResidentAdapters(transformer, codec, adapters, config.any_base) if adapters else None
        language_model = LanguageModel(transformer, bool(config.batch_invariant), rows_stand_alone(ops, config.device))
        return cls(language_model, codec, checkpoint, loaded, config, ops, (time.perf_counter() - started) * 1e3, residents)

    def load_adapter(self, name: str, path: str | Path) -> Resident | Replaced:
        """Load an adapter under a name, or replace the one of this name; a running batch finishes with what it began with."""
        return self._resident().load(name, path)

    def unload_adapter(self, name: str) -> None:
        """Forget a named adapter; AdapterError lists the loaded ones where it is unknown."""
        self._resident().remove(name)

    def list_adapters(self) -> dict[str, AdapterFacts]:
        """Return the facts of every named adapter; none where the engine was loaded without `adapters`."""
        return self._residents.facts() if self._residents is not None else {}

    @property
    def adapter_path(self) -> Path | None:
        """Where the one adapter was read from, None without one."""
        return self._slot.adapter.path if self._slot.adapter is not None else None

    def sampling(self, profile: str | None = None, *, adapter: str | None = None, **settings: Any) -> SamplingParams:
        """Return the profile's sampling parameters with `settings` laid over them.

        The profile is the one named, else the file beside the adapter (`profiles.profile_beside`), else the one the adapter records.
        adapter: a named one in place of the engine's own; the file beside it is read when it is loaded.
        Raises:
            ConfigError: an unknown profile or name, settings that do not hold together, or a file beside the adapter that is no profile.
        """
        check_settings(self.family, canonical_names(settings))
        if profile is not None:
            return profile_params(profile, settings)
        facts, beside = (
            self._resident().profile(adapter) if adapter is not None else (self.adapter_facts, profile_beside(self.adapter_path))
        )
        if beside is not None:
            return laid_over(TUNED, beside, settings)
        own = facts.profile if facts else default_profile(self.facts)
        if own not in profile_names():
            raise ConfigError(
                f"{(facts or self.facts).name}: its profile is {own!r}, expected one of {', '.join(profile_names())}. Give one (--profile)."
            )
        return profile_params(own, settings)

    def generate(
        self,
        prompts: str | Prompt | Sequence[str | Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        adapters: Names = None,
    ) -> list[GenerationResult]:
        """Answer every prompt; one result each, in order. `params` is shared, or one per prompt; None is the adapter's profile.

        adapters: a named adapter for all prompts, or one (None: the base) per prompt, of an engine loaded with several.
        Raises:
            RequestError, ConfigError, AdapterError: a prompt cannot be laid out, a parameter does not fit, an adapter is not loaded.
        """
        return [item for item in self._run(prompts, params, False, adapters) if isinstance(item, GenerationResult)]

    def stream(
        self,
        prompts: str | Prompt | Sequence[str | Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        adapters: Names = None,
    ) -> Iterator[StepEvent | GenerationResult]:
        """Yield a StepEvent for every denoising step of every prompt (`index` names the prompt), then the results in order."""
        return self._run(prompts, params, True, adapters)

    @property
    def driver(self) -> str:
        """How decodes run: "eager", "replay" or "loop"."""
        return self._decoding.driver

    @torch.inference_mode()
    def warm_up(
        self, prompts: str | Prompt | Sequence[str | Prompt], params: SamplingParams | None = None, progress: Progress | None = None
    ) -> None:
        """Capture what a batch of these prompts needs, so that the first request of its shape does not wait for it.

        The tokens do not matter, the number of prompts, their lengths and the sampling parameters do; see `denoisers.lad_bucket`.
        Raises:
            DeviceMemoryError, CaptureError: one sentence each.
        """
        self._decoding.warm_up(*self._batch(prompts, params), self.mask_id, self.eos_ids, progress)

    def memory_plan(self, prompts: str | Prompt | Sequence[str | Prompt], params: SamplingParams | None = None) -> MemoryPlan:
        """Return what a batch of these prompts takes of the device's memory; nothing is allocated."""
        return self._decoding.plan(*self._batch(prompts, params), self.mask_id, self.eos_ids)

    @torch.inference_mode()
    def swap_adapter(self, adapter: str | Path | None) -> None:
        """Put another adapter (None: the base alone) in the place of the merged one, in the same storage: captured steps go on.

        Going back to an adapter gives its weights bit for bit. See `adapters.swap` for what is kept in host memory. No decode may run.
        Raises:
            AdapterError: it does not fit, changes nothing, or cannot be merged into what is there; the engine is as it was.
        """
        loaded = read_adapter(_default_adapter() if adapter == DEFAULT_ADAPTER else adapter) if adapter is not None else None
        self._slot.check(loaded)
        if loaded is not None:
            loaded = checked_adapter(loaded, self.model.transformer, self.codec, self.config, adapter == DEFAULT_ADAPTER)
        mask_id = loaded.facts.mask_id if loaded is not None else mask_id_of(self.codec, self.config, self.facts)
        family = loaded.facts.decoding if loaded is not None else self.facts.decoding
        if family != self.family:
            raise AdapterError(f"adapter: it decodes as {family}, expected {self.family} as this engine does. Load an engine with it.")
        self._slot.swap(loaded)
        self.adapter_facts, self.mask_id = (loaded.facts if loaded is not None else None), mask_id
        self.eos_ids = eos_ids_of(self.facts, self.adapter_facts)
        shifts = (loaded.facts if loaded is not None else self.facts).predicts_next_token
        if shifts != self.model.head.predicts_next_token:
            # Which row predicts a position is baked into a captured step; the mask is part of its bucket.
            self._decoding.forget()
            self.model.head.predicts_next_token = shifts

    def drift(self) -> DriftReport:
        """Compare the merged weights with the unmerged low-rank path on the probe set, in the engine's dtype, on a freshly read base.

        The report is saved beside the adapter; where that place cannot be written, a warning says so.
        Raises:
            ConfigError: the engine has no adapter.
        """
        if self._slot.adapter is None:
            raise ConfigError("drift: this engine has no adapter, expected one. Load it with an adapter.")
        clean = load_transformer(self._checkpoint, self.ops, self.config, None)
        report = drift_report(clean, self.codec, self._slot.adapter)
        save_report(save_drift, report, self._slot.adapter, "drift")
        return report

    @torch.inference_mode()
    def agreement(
        self, prompts: Sequence[str | Prompt] | None = None, params: SamplingParams | None = None, batch_size: int = 8
    ) -> AgreementReport:
        """Compare the engine's precision with the weights as they are on the canvases these decode through, in the engine's dtype.

        The base is read again beside this one. The report is saved beside the adapter; where it cannot be, a warning says so.
        prompts: None is the probe set. params: None is the adapter's profile.
        Raises:
            ConfigError: the engine's precision is auto, or it decodes as another family than lad.
        """
        if self.family != "lad":
            raise ConfigError(f"agreement: this engine decodes as {self.family}, expected lad. Leave --agreement-report out.")
        if self.config.precision == "auto":
            raise ConfigError("agreement: this engine's precision is auto, expected one to compare. Load it with one (--precision).")
        exact = load_transformer(self._checkpoint, self.ops, self.config, None)
        if self._slot.adapter is not None:
            adapt(exact, self._slot.adapter, self.config)
        pair = PairedModel(LanguageModel(exact, self.model.batch_invariant, self.model.rows_stand_alone), self.model)
        denoiser, params, prompts = LadDenoiser(pair, self.ops), params or self.sampling(), list(prompts or SENTENCES)
        for start in range(0, len(prompts), batch_size):
            canvases, each = self._batch(prompts[start : start + batch_size], params)
            state = denoiser.begin(canvases, each, mask_id=self.mask_id, eos_ids=self.eos_ids, device=self.config.device)
            for step in steps(denoiser, state):
                pair.count(state.is_open, state.eos_ids, step)
        facts, names = self.facts, (self.config.precision, self.config.dtype, self.config.device, params.profile)
        adapter = self.adapter_facts.name if self.adapter_facts else None
        report = AgreementReport(adapter, facts.name, facts.fingerprint, *names, len(prompts), **pair.totals())
        save_report(save_agreement, report, self._slot.adapter, "agreement")
        return report

    @torch.inference_mode()
    def score(self, prompt: str | Prompt, continuation: str, *, copies: int = 32, seed: int = 0) -> Likelihood:
        """Return how probable a masked model holds `continuation` behind `prompt`, from `copies` masked copies; see `model.likelihood`.

        Raises:
            ConfigError: this engine does not decode as masked. RequestError: prompt or continuation cannot be laid out.
        """
        ids, is_scored = lay_out_scored(prompt, continuation, self.adapter_facts, self.codec, self.facts, self.family)
        return score_text(self.model, ids, is_scored, self.mask_id, uniform=self.ops.uniform, copies=copies, seed=seed)

    @torch.inference_mode()
    def generate_autoregressive(
        self, prompts: str | Prompt | Sequence[str | Prompt], params: SamplingParams | Sequence[SamplingParams] | None = None
    ) -> list[GenerationResult]:
        """Continue every prompt token by token: the baseline that diffusion decoding is measured against; one result each, in order.

        Of `params`, what `config.READ_AUTOREGRESSIVELY` names is read; None is greedy. A result's nfe counts the pass over the prompt too.
        Raises:
            ConfigError: the engine has an adapter, or a parameter does not fit.
            RequestError: a prompt cannot be laid out, or brings a draft or an infill.
            DeviceMemoryError, CaptureError: one sentence each.
        """
        if self.adapter_facts is not None:
            raise ConfigError(
                f"autoregressive: this engine has the adapter {self.adapter_facts.name}, expected the base alone. Load it without."
            )
        prompts = [prompts] if isinstance(prompts, (str, Prompt)) else list(prompts)
        requests = list(zip(prompts, each_params(params or SamplingParams(**AUTOREGRESSIVE_DEFAULTS), prompts), strict=True))
        if self._continuation is None:
            self._continuation = Continuation(self.model.transformer, self.ops, self.config, self.facts)
        done = self._continuation.run(requests, self.codec, self.eos_ids)
        return [self._result(*parts[:2], one, parts[2]) for parts, (_, one) in zip(done, requests, strict=True)]

    # As a decorator: a with block would leave the caller in inference mode between two items.
    @torch.inference_mode()
    def _run(self, prompts: Any, params: Any, wants_events: bool, adapters: Names = None) -> Iterator[StepEvent | GenerationResult]:
        if self._residents is None and adapters is None:
            yield from self._decode(*self._batch(prompts, params), wants_events, None)
            return
        prompts = [prompts] if isinstance(prompts, (str, Prompt)) else list(prompts)
        with self._resident().chosen(each_name(adapters, len(prompts))) as chosen:
            yield from self._decode(*self._batch(prompts, params, chosen), wants_events, chosen)

    def _decode(
        self, canvases: list[Canvas], each: list[SamplingParams], wants_events: bool, chosen: Chosen
    ) -> Iterator[StepEvent | GenerationResult]:
        names = [self.adapter_facts and self.adapter_facts.name] * len(canvases) if chosen is None else [one and one.name for one in chosen]
        started = time.perf_counter()
        first_step_ms = None
        with self._decoding.run(canvases, each, self.mask_id, self.eos_ids) as decode:
            for frame in decode.frames(wants_events):
                elapsed_ms = (time.perf_counter() - started) * 1e3
                first_step_ms = first_step_ms or elapsed_ms
                for index, row in frame.rows:
                    event = read_event(frame.view, row, frame.step, elapsed_ms)
                    if event is not None:
                        text, paused = self._answer(event.token_ids, canvases[index], each[index]).text, time.perf_counter()
                        yield dataclasses.replace(event, index=index, text=text)
                        # What the caller does with an event (drawing it) is not time we took.
                        started += time.perf_counter() - paused
            total_ms = (time.perf_counter() - started) * 1e3
            outcomes = [decode.outcome(index) for index in range(len(canvases))]
        timings = {"first_step_ms": first_step_ms or total_ms, "total_ms": total_ms}
        for outcome, canvas, one, name in zip(outcomes, canvases, each, names, strict=True):
            yield self._result(outcome, canvas, one, timings, name)

    def _resident(self) -> ResidentAdapters:
        if self._residents is None:
            raise ConfigError("adapters: this engine was loaded without any by name, expected some. Load it with adapters={name: path}.")
        return self._residents

    def _batch(self, prompts: Any, params: Any, chosen: Chosen = None) -> tuple[list[Canvas], list[SamplingParams]]:
        """Check a batch and lay it out; returns its canvases and one SamplingParams each."""
        if self.mask_id is None:
            raise ConfigError("mask_token is None, expected a piece to hide answer positions with. Load the engine with one.")
        prompts = [prompts] if isinstance(prompts, (str, Prompt)) else list(prompts)
        params = params if params is not None else [self.sampling(adapter=one and one.name) for one in chosen or [None] * len(prompts)]
        each = each_params(params, prompts)
        check_batch(each, self.facts, self.family)
        adapters = [self.adapter_facts] * len(prompts) if chosen is None else [one and one.facts for one in chosen]
        rest = (self.codec, self.facts, self.family, self.mask_id)
        return [lay_out_request(*each_one, *rest) for each_one in zip(prompts, each, adapters, strict=True)], each

    def _answer(self, token_ids: Sequence[int], canvas: Canvas, params: SamplingParams) -> Answer:
        return cut_answer(
            self.codec,
            token_ids,
            eos_ids=self.eos_ids,
            mask_id=self.mask_id,
            stop=params.stop,
            not_before=fixed_length(canvas, self.eos_ids),
        )

    def _result(
        self, outcome: Outcome, canvas: Canvas, params: SamplingParams, timings: dict[str, float], adapter: str | None = None
    ) -> GenerationResult:
        answer = self._answer(outcome.token_ids, canvas, params)
        return GenerationResult(
            text=answer.text,
            token_ids=outcome.token_ids,
            confidences=outcome.confidences,
            step_map=outcome.step_map,
            nfe=outcome.nfe,
            tpf=answer.length / max(outcome.nfe, 1),
            steps=outcome.steps,
            stopped_early=outcome.stopped_early,
            finish_reason=answer.finish_reason,
            timings=timings,
            model=self.facts.name,
            adapter=adapter,
            profile=params.profile,
            seed=params.seed,
            dtype=self.config.dtype,
            precision=self.config.precision,
            device=self.config.device,
            ops=dict(self.ops.chosen),
        )


def _default_adapter() -> Path:
    return Path(str(resources.files("lad_engine") / "assets" / "default" / "adapter.safetensors"))
