"""tokenizer.json and foreign objects behind the three methods, and chats whose tokens know who speaks."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

import grokscope as gs
from grokscope.text.chat import parts_of, phases, render
from grokscope.text.foreign import Foreign
from grokscope.text.tokenizer import SentencePiece, TokenizerJson
from grokscope.text.visible import of_bytes
from tests.checkpoints.families import FOLDER

SPECIAL = ["<|bos|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>"]
TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TALK = [
    {"role": "system", "content": "be kind"}, {"role": "user", "content": "hello"},
    {"role": "assistant", "content": "<think>a user</think>hello"}, {"role": "user", "content": "the fox"},
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny model beside a byte-level tokenizer that puts <|bos|> before a text."""
    path = tmp_path_factory.mktemp("m") / "model"
    shutil.copytree(FOLDER / "qwen3_moe" / "hub", path)
    made = Tokenizer(models.BPE())
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    made.train_from_iterator(["the quick fox be kind hello user assistant é"], trainers.BpeTrainer(vocab_size=80, special_tokens=SPECIAL))
    made.post_processor = processors.TemplateProcessing(single="<|bos|> $A", special_tokens=[("<|bos|>", 0)])
    made.save(str(path / "tokenizer.json"))
    (path / "chat_template.jinja").write_text(TEMPLATE)
    return path


@pytest.fixture(scope="module")
def model(folder):
    return gs.load(folder, dtype="float32")


def test_what_goes_before_a_text_is_the_tokenizers(model, folder, tmp_path):
    assert model.encode("the fox").rows[0][0] == 0 and model.tokenizer.encode("the fox")[0] != 0
    assert model.encode("<|bos|>the fox").rows[0].count(0) == 1, "no second one"
    quiet = tmp_path / "tokenizer.json"
    shutil.copyfile(folder / "tokenizer.json", quiet)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"add_bos_token": False, "bos_token": "<|bos|>"}))
    assert TokenizerJson(quiet).prefix == []
    for wrong in ("{", "[]"):  # of which it would not be known whether a beginning belongs there
        (tmp_path / "tokenizer_config.json").write_text(wrong)
        with pytest.raises(ValueError, match="tokenizer_config.json: wanted"):
            TokenizerJson(quiet).prefix  # noqa: B018


def test_an_empty_file_and_one_without_end_are_no_tokenizers(tmp_path):
    (tmp_path / "empty.model").touch()
    with open(tmp_path / "large.model", "wb") as file:
        file.truncate(1 << 40)
    for name, got in (("empty.model", "an empty file"), ("large.model", "wanted at most 268,435,456 bytes")):
        with pytest.raises(ValueError, match=f"{name}: wanted a SentencePiece model, got something else .*{got}"):
            SentencePiece(tmp_path / name)


def test_prompts_scores_and_sweeps_begin_a_text_alike(model):
    """A sweep once put a second beginning before a text that had one."""
    swept = [model.sweep([text], progress=False).tokens for text in ("the fox", "<|bos|>the fox")]
    assert swept == [len(model.encode("the fox").rows[0])] * 2
    ends = [model.score([text])["logprob"].values[-1] for text in ("the fox", "<|bos|>the fox")]
    np.testing.assert_allclose(ends[0], ends[1], atol=0.05)


def test_pieces_a_reader_understands_and_ids_beyond(model):
    pieces = model.pieces(model.encode("the fox é"))[0]
    assert pieces[0] == "<|bos|>" and "".join(pieces[1:]).replace("▁", " ") == "the fox é"
    size = model.tokenizer.vocab_size
    assert model.tokenizer.pieces([size + 3, -1]) == [f"[{size + 3}]", "[-1]"]
    assert model.tokenizer.decode([size]) == f"[{size}]"
    assert of_bytes("Ã") == "<0xC3>" and of_bytes("Ġthe") == "▁the"


@given(st.text(alphabet=st.characters(codec="utf-8"), max_size=20))
def test_texts_come_back(text):
    made = Tokenizer(models.BPE(vocab={c: n for n, c in enumerate(pre_tokenizers.ByteLevel.alphabet())}, merges=[]))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False), decoders.ByteLevel()
    ours = Foreign(made)
    assert ours.decode(ours.encode(text)) == text


def test_objects_of_other_libraries(model, folder):
    class Like:
        """What a transformers tokenizer does of what is asked."""

        def __init__(self):
            self._own = Tokenizer.from_file(str(folder / "tokenizer.json"))

        def __len__(self):
            return 60

        def encode(self, text, add_special_tokens=True):
            return self._own.encode(text, add_special_tokens=add_special_tokens).ids

        def decode(self, ids):
            return self._own.decode(list(ids))

        def convert_ids_to_tokens(self, ids):
            return [self._own.id_to_token(i) for i in ids]

    taken = gs.load(folder, dtype="float32", tokenizer=Like())
    assert taken.encode("the fox").rows == model.encode("the fox").rows
    assert taken.tokenizer.pieces([0, 61]) == ["<|bos|>", "[61]"]
    for wrong, message in ((object(), "encode and decode"), (type("X", (), {"encode": lambda s, t: "ab", "decode": len})(), "encode")):
        with pytest.raises((TypeError, ValueError), match=message):
            gs.load(folder, dtype="float32", tokenizer=wrong)


def test_a_chat_s_tokens_know_their_role_and_phase(model, tmp_path):
    prompt = model.chat(TALK)
    pieces, (roles,), (stages,) = model.pieces(prompt)[0], prompt.classes["role"], prompt.classes["phase"]
    assert len(pieces) == len(roles) == len(stages) and prompt.ids[0, 0] != 0, "the template says what goes before"

    def said(role, phase):
        return "".join(p for p, r, s in zip(pieces, roles, stages, strict=True) if (r, s) == (role, phase))

    assert said("assistant", "thinking") == "<think>a▁user</think>"
    assert said("assistant", "answer").startswith("hello") and said("user", "prompt").count("<|im_start|>") == 2
    trace = model.trace(prompt, ["router.experts"])
    assert trace.data["role"].values[0].tolist() == roles
    trace.save(tmp_path / "t.zarr")
    assert (gs.open_trace(tmp_path / "t.zarr").data["phase"].values == trace.data["phase"].values).all()
    made = model.generate(prompt, 3, capture=["router.experts"])
    new = made.trace.data["role"].values[0][len(roles) :]
    assert len(new) == 3 and set(new) == {"assistant"}


def test_a_generation_inside_a_thought_is_thinking():
    text = "<think>one two</think>three"
    assert [(text[p.start : p.stop], p.phase) for p in phases(text)] == [("<think>one two</think>", "thinking"), ("three", "answer")]
    assert [p.phase for p in phases("<think>not closed")] == ["thinking"]


def test_every_character_of_a_conversation_is_somebody_s():
    text = render(TEMPLATE, TALK, {}, {})
    parts = parts_of(text, TALK)
    assert [p.start for p in parts][1:] == [p.stop for p in parts][:-1]
    assert (parts[0].start, parts[-1].stop, parts[-1].role) == (0, len(text), "assistant")


ERNIE = (
    "<|begin|>{% for m in messages %}{% if m.role == 'user' %}{{ 'User: ' + m.content + '\n' }}{% elif m.role == 'assistant' %}"
    "{{ 'Assistant: ' + m.content + '</s>' }}{% else %}{{ m.content + '\n' }}{% endif %}{% endfor %}{{ 'Assistant: ' }}"
)
MIXTRAL = "<s>{% for m in messages %}{{ ' [INST] ' + m.content + ' [/INST]' if m.role == 'user' else ' ' + m.content + '</s>' }}{% endfor %}"
MINIMAX = (
    "{% for m in messages %}{{ ']~b]' + ('ai' if m.role == 'assistant' else m.role) + '\n' + m.content + '[e~[\n' }}{% endfor %}]~b]ai\n"
)
HARMONY = (
    "{% for m in messages %}{% if m.thinking %}<|start|>assistant<|channel|>analysis<|message|>{{ m.thinking }}<|end|>{% endif %}"
    "<|start|>{{ m.role }}{{ '<|channel|>final' if m.role == 'assistant' }}<|message|>{{ m.content }}<|end|>{% endfor %}<|start|>assistant"
)
QUESTIONS = [
    {"role": "user", "content": "Why?"}, {"role": "assistant", "thinking": "the user asks", "content": "So."},
    {"role": "user", "content": "And so?"},
]  # fmt: skip


@pytest.mark.parametrize(
    ("template", "answer", "asked"),
    [(ERNIE, "So.</s>", "<|begin|>User: Why?\nUser: And so?\n"), (MIXTRAL, "So.</s>", "<s> [INST] Why? [/INST]  [INST] And so? [/INST]"),
     (MINIMAX, "So.[e~[\n", "]~b]user\nWhy?[e~[\n]~b]user\nAnd so?[e~[\n"),
     (HARMONY, "So.<|end|>", "<|start|>user<|message|>Why?<|end|><|start|>user<|message|>And so?<|end|>")],
    ids=["ernie", "mixtral", "minimax", "harmony"],
)  # fmt: skip
def test_who_speaks_in_templates_of_every_make(template, answer, asked):
    """Roles with a colon after a token, roles that no word names, other names of roles, a thought that the message holds apart."""
    text = render(template, QUESTIONS, {}, {})
    said: dict[tuple[str, str], str] = {}
    for part in parts_of(text, QUESTIONS):
        said[part.role, part.phase] = said.get((part.role, part.phase), "") + text[part.start : part.stop]
    assert said["assistant", "answer"] == answer and said["user", "prompt"] == asked
    thought = "<|channel|>analysis<|message|>the user asks<|end|>" if template == HARMONY else None
    assert said.get(("assistant", "thinking")) == thought


def test_what_templates_expect_of_jinja():
    template = "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% break %}{% endfor %} {{ {'b': 'é', 'a': 1} | tojson(sort_keys=true) }}"
    assert render(template, QUESTIONS, {}, {}) == 'Why? {"a": 1, "b": "é"}'


def test_a_role_without_a_head_keeps_its_words_where_they_stand():
    talk = [{"role": "system", "content": "Be kind."}, *QUESTIONS]
    text = render(ERNIE, talk, {}, {})
    parts = [(text[p.start : p.stop], p.role) for p in parts_of(text, talk)]
    assert ("Be kind.", "system") in parts and ("Why?", "user") in parts


@pytest.mark.parametrize(
    ("template", "message"),
    [("{{ ''.__class__.__mro__ }}", "unsafe|access"), ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
     ("{% for %}", "chat: wanted messages"), ("{{ messages.append(1) }}", "chat: wanted messages")],
)  # fmt: skip
def test_templates_are_strangers(model, template, message):
    with pytest.raises(ValueError, match=message):
        model.chat(TALK, template=template)


@pytest.mark.parametrize("wrong", [[], "hello", [{"content": "x"}], {"role": "user"}, ["x"]])
def test_what_is_no_conversation(model, wrong):
    with pytest.raises(ValueError, match="wanted messages like"):
        model.chat(wrong)


def test_a_model_without_a_template_says_so():
    with pytest.raises(ValueError, match="chat template"):
        gs.load().chat(TALK)


def test_options_reach_the_template(model):
    prompt = model.chat(TALK[:2], add_generation_prompt=False)
    assert np.array(prompt.classes["role"]).tolist()[0][-1] == "user"
