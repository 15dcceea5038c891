"""What the added parts do to the base's function: nothing, or exactly what plain LoRA does."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.testing import assert_close

from tests import reference, tiny

CLOSE = {"atol": 2e-5, "rtol": 1e-4}


def by_hand(model, base, prompt, ids, mask, decode):
    """Logits at real text positions of a bare base that gets the prompt as embeddings."""
    P = len(prompt)
    embedded = base.get_input_embeddings()(ids)
    first = 1 if model.family == "encoder-only" else 0
    rows = prompt.expand(len(ids), -1, -1)
    embedded = torch.cat([embedded[:, :first], rows, embedded[:, first:]], 1)
    longer = torch.cat([mask.new_ones(len(ids), P), mask], 1)
    output = base(inputs_embeds=embedded, attention_mask=longer, **decode)
    if model.family == "encoder-decoder":
        return output.logits
    if model.family == "decoder-only":
        return output.logits[:, P:][mask.bool()]
    hidden = output.last_hidden_state
    pooled = []
    for row, real in zip(hidden, mask.sum(1), strict=True):
        text = torch.cat([row[:1], row[1 + P : P + real]])
        pooled.append(text.mean(0))
    return model.head(torch.stack(pooled))


def answers(model, ids, mask, decode):
    logits = model(ids, mask, **decode).logits
    return logits[mask.bool()] if model.family == "decoder-only" else logits


@pytest.mark.parametrize("name", tiny.CONFIGS)
def test_experts_without_effect_leave_the_base_plus_prompt(name):
    base = tiny.base(name)
    experts = [tiny.expert(base, n, seed=k, zero=True) for k, n in enumerate("ab")]
    model = tiny.pemt(base, experts, target_adapter=False, prompt_fusion="none")
    if model.head is not None:
        torch.nn.init.normal_(model.head.weight)
    ids, mask = tiny.batch()
    decode = tiny.decode_inputs(base, len(ids))
    wanted = by_hand(model, tiny.base(name), tiny.prompt(), ids, mask, decode)
    assert_close(answers(model, ids, mask, decode), wanted, **CLOSE)


@pytest.mark.parametrize("name", tiny.ONE_OF_EACH_FAMILY)
def test_a_fresh_source_model_is_the_base_plus_prompt(name):
    model = tiny.source(tiny.base(name))
    ids, mask = tiny.batch()
    decode = tiny.decode_inputs(model.base, len(ids))
    wanted = by_hand(model, tiny.base(name), tiny.prompt(), ids, mask, decode)
    assert_close(answers(model, ids, mask, decode), wanted, **CLOSE)


@pytest.mark.parametrize("kind", ["lora", "bottleneck"])
@pytest.mark.parametrize("name", tiny.CONFIGS)
def test_one_expert_with_weight_one_is_the_source_model(name, kind):
    base = tiny.base(name)
    expert = tiny.expert(base, "a", kind=kind)
    model = tiny.pemt(base, [expert], target_adapter=False, prompt_fusion="none")
    source = tiny.source(tiny.base(name), kind=kind)
    source.load_expert(expert)
    with torch.no_grad():
        source.task_prompt.embedding.copy_(tiny.prompt())
        if model.head is not None:
            torch.nn.init.normal_(model.head.weight)
            source.head.load_state_dict(model.head.state_dict())
    ids, mask = tiny.batch()
    decode = tiny.decode_inputs(base, len(ids))
    ours = answers(model, ids, mask, decode)
    assert_close(ours, answers(source, ids, mask, decode), **CLOSE)
    with torch.no_grad():  # and the expert does matter
        for branch in source.branches:
            branch.B.zero_()
    assert (ours - answers(source, ids, mask, decode)).abs().max() > 1e-2


@pytest.mark.parametrize("name", [*tiny.ONE_OF_EACH_FAMILY, "gpt2", "bart"])
def test_gates_of_one_for_one_expert_are_plain_peft_lora(name):
    base = tiny.base(name)
    model = tiny.pemt(base, target_adapter=False, prompt_fusion="none")
    expert = model.experts[1]
    if model.head is not None:
        torch.nn.init.normal_(model.head.weight)
    bare = tiny.base(name)
    config = LoraConfig(
        r=expert.info.rank, lora_alpha=expert.info.alpha,
        target_modules=[layer.module for layer in expert.layers], fan_in_fan_out=name == "gpt2",
    )  # fmt: skip
    peft = get_peft_model(bare, config).eval()
    with torch.no_grad():
        for layer in expert.layers:
            lora = peft.base_model.model.get_submodule(layer.module)
            lora.lora_A["default"].weight.copy_(layer.A)
            lora.lora_B["default"].weight.copy_(layer.B)
    ids, mask = tiny.batch()
    decode = tiny.decode_inputs(base, len(ids))
    one = {site.index: torch.tensor([0.0, 1.0, 0.0]) for site in model.sites}
    output = model(ids, mask, fixed_gates=one, output_gates=True, **decode)
    ours = output.logits[mask.bool()] if model.family == "decoder-only" else output.logits
    assert_close(ours, by_hand(model, bare, tiny.prompt(), ids, mask, decode), **CLOSE)
    assert len(output.gates) == len(model.sites)


def bare_answer(base, ids, mask, decode):
    output = base(input_ids=ids, attention_mask=mask, **decode)
    return output.last_hidden_state if "logits" not in output else output.logits


@pytest.mark.parametrize("kind", ["pemt", "source"])
@pytest.mark.parametrize("name", tiny.CONFIGS)
def test_disabled_is_the_base_bit_for_bit_also_after_training(name, kind):
    ids, mask = tiny.batch(side="left")
    base = tiny.base(name)
    decode = tiny.decode_inputs(base, len(ids))
    with torch.no_grad():
        wanted = bare_answer(base, ids, mask, decode)
        text = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
        tokens = (
            None if name in tiny.ENCODER_ONLY else base.generate(ids, attention_mask=mask, **text)
        )
    model = tiny.pemt(base) if kind == "pemt" else tiny.source(base)
    tiny.train(model)
    with torch.no_grad():
        moved = model(ids, mask, **decode).logits
        with model.disable():
            assert torch.equal(bare_answer(model.base, ids, mask, decode), wanted)
            output = model(ids, mask, **decode)
            got = output.logits if "logits" in output else output.last_hidden_state
            assert torch.equal(got, wanted)
            if tokens is not None:
                assert torch.equal(model.generate(ids, mask, **text), tokens)
        assert torch.equal(model(ids, mask, **decode).logits, moved)
    if tokens is not None:
        assert not torch.equal(moved, wanted)


@pytest.mark.parametrize("name", tiny.ONE_OF_EACH_FAMILY)
def test_an_error_inside_disable_or_forward_leaves_the_model_as_it_was(name):
    model = tiny.pemt(tiny.base(name))
    ids, mask = tiny.batch()
    decode = tiny.decode_inputs(model.base, len(ids))
    wanted = model(ids, mask, **decode).logits
    with pytest.raises(RuntimeError), model.disable():
        raise RuntimeError
    with pytest.raises(IndexError):
        model(ids + 10 * tiny.VOCABULARY, mask, **decode)
    assert model.slot.current() is None
    assert torch.equal(model(ids, mask, **decode).logits, wanted)


@pytest.mark.parametrize("family_of", ["t5", "llama"])
def test_scores_inside_disable_are_the_bases(family_of):
    ids, mask = tiny.batch(side="left")
    answers = [[5, 9, 1], [7, 1]]
    model = tiny.stir(tiny.pemt(tiny.base(family_of)))
    with model.disable():
        ours = model.score_answers(ids, mask, answers)
    bare = tiny.base(family_of)
    for row in range(len(ids)):
        text = ids[row : row + 1, mask[row].bool()]
        for column, answer in enumerate(answers):
            wanted = tiny.log_likelihood(bare, text, answer)
            assert_close(ours[row, column], wanted, **CLOSE)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", tiny.CONFIGS)
def test_features_inside_disable_are_the_mean_of_the_bases_hidden_states(name, side):
    ids, mask = tiny.batch(side=side)
    model = tiny.stir(tiny.pemt(tiny.base(name)))
    moved = model.features(ids, mask)
    with model.disable():
        ours = model.features(ids, mask)
    bare = tiny.base(name)
    body = bare if model.family == "encoder-only" else bare.base_model
    body = body.encoder if model.family == "encoder-decoder" else body
    with torch.no_grad():
        for row in range(len(ids)):
            hidden = body(input_ids=ids[row : row + 1, mask[row].bool()]).last_hidden_state
            assert_close(ours[row], hidden[0].mean(0), **CLOSE)
    assert (moved - ours).abs().max() > 1e-2


@pytest.mark.parametrize("name", tiny.ONE_OF_EACH_FAMILY)
def test_label_scores_are_log_probabilities(name):
    ids, mask = tiny.batch(side="left")
    answers = [[5, 9, 1], [7, 1], [8]]
    model = tiny.stir(tiny.pemt(tiny.base(name)))
    scores = model.label_scores(ids, mask, answers)
    assert_close(scores.exp().sum(-1), torch.ones(len(ids)))
    if model.head is not None:
        assert_close(scores, model(ids, mask).logits.log_softmax(-1))
    else:
        assert_close(scores, model.score_answers(ids, mask, answers).log_softmax(-1))


@pytest.mark.parametrize("name", tiny.ONE_OF_EACH_FAMILY)
def test_the_prompt_is_the_correlation_with_every_experts_prompt(name):
    for scale in (1.0, 0.1):
        model = tiny.stir(tiny.pemt(tiny.base(name), prompt_scale=scale))
        target = model.correlation_prompt.target.embedding
        wanted = reference.correlation_prompt(target, [e.prompt for e in model.experts], scale)
        assert_close(model.prompt(), wanted, **CLOSE)


@pytest.mark.parametrize("name", tiny.ONE_OF_EACH_FAMILY)
def test_tau_divides_the_gates_scores(name):
    ids, mask = tiny.batch()
    scores = []
    for tau in (1.0, 2.0):
        model = tiny.stir(tiny.pemt(tiny.base(name), tau=tau))
        first = model.gates(ids, mask)[0].log()  # later layers see what the first one changed
        scores.append(first - first.mean(-1, keepdim=True))
    assert_close(scores[0], 2.0 * scores[1], **CLOSE)
    assert scores[0].abs().max() > 1e-2


def test_the_target_adapters_activation_is_a_setting():
    model = tiny.stir(tiny.pemt(tiny.base("bert"), activation="relu"))
    adapter, f = model.mixtures[0].adapter, torch.randn(2, 3, 32)
    assert_close(adapter(f), f + adapter.up(adapter.down(f).clamp_min(0)), **CLOSE)
