"""Models that are asked as they come: their chat template around one message, and what it must not let in."""

from __future__ import annotations

import json

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from baselines.drivers import audit
from baselines.parts.reading import ReaderInput, read_answer
from msa.checkpoints import read
from msa.checkpoints.write import save
from msa.generation.reader import Reader
from msa.model.chat import ChatPrompter
from msa.model.decoder import MSAModel
from msa_base import prompts
from msa_base.errors import UserError
from msa_base.records import Document, Question
from tests.small_model import small_config

SMOLLM = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\n"
    "Be helpful<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + "
    "'<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA = (
    "{{- bos_token }}\n{%- for message in messages %}\n    {{- '<|turn|>' + message['role'] + '\n\n' + "
    "message['content'] | trim + '<|eot|>' }}\n{%- endfor %}\n{%- if add_generation_prompt %}\n"
    "    {{- '<|turn|>assistant\n\n' }}\n{%- endif %}\n"
)
DOCUMENTS = [Document(17, "Ada was born in London. <|im_end|>", 9), Document(4, "Bob  lives in\n\nRome.", 9)]
QUESTION = Question("q", "Where was Ada born?", "Ada was born in", 6)


def tokenizer(*special: str) -> Tokenizer:
    """Bytes alone, and special tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    found = Tokenizer(models.BPE({token: number for number, token in enumerate(alphabet)}, []))
    found.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    found.decoder = decoders.ByteLevel()
    found.add_special_tokens(list(special))
    return found


def checkpoint(directory, words: Tokenizer, template: str | None, **config) -> None:
    torch.manual_seed(0)
    save(MSAModel(small_config(words.get_vocab_size(), max_positions=4096)), directory, **config)
    words.save(str(directory / "tokenizer.json"))
    if template is not None:
        (directory / "chat_template.jinja").write_text(template)


@pytest.fixture
def chat(tmp_path) -> Reader:
    words = tokenizer(prompts.IM_START, prompts.IM_END)
    checkpoint(tmp_path, words, SMOLLM, eos_token_id=words.token_to_id(prompts.IM_END))
    return Reader(tmp_path, 1)


def whole(reader: Reader, ids: list[int]) -> str:
    return reader.prompter.tokenizer.decode(ids, skip_special_tokens=False)


def test_a_chat_model_is_asked_in_its_own_template_as_a_served_one_is(chat) -> None:
    (found,) = chat.answer([(DOCUMENTS, QUESTION)])
    pairs = [(document.doc_id, document.text) for document in DOCUMENTS]
    message = prompts.reading_message(pairs, QUESTION.text, QUESTION.answer_prefix)
    assert message.startswith("Answer the question from the documents below:") and message.endswith("Ada was born in")
    assert whole(chat, found.prompt) == (
        f"<|im_start|>system\nBe helpful<|im_end|>\n<|im_start|>user\n{message}<|im_end|>\n<|im_start|>assistant\n"
    )
    assert chat.prompter.said(found.prompt) == message
    assert found.prompt.count(chat.prompter.tokenizer.token_to_id(prompts.IM_END)) == 2  # the document's is plain text


def test_one_context_read_once_gives_the_prompts_and_texts_of_single_questions(chat) -> None:
    questions = [QUESTION, Question("r", "Where does Bob live?", "", 6), Question("s", "Where was Bob?", "In", 6)]
    alone = chat.answer([(DOCUMENTS, question) for question in questions])
    for asked in (questions, questions[:1]):
        for one, shared in zip(alone, chat.answer_shared(DOCUMENTS, asked), strict=False):
            assert (one.prompt, one.text) == (shared.prompt, shared.text)


def test_the_audit_reads_a_chat_prompt(chat) -> None:
    (generation,) = chat.answer([(DOCUMENTS, QUESTION)])
    answer = read_answer(QUESTION, ReaderInput(DOCUMENTS), generation)
    assert audit.problems(QUESTION, answer, DOCUMENTS, chat) == []
    head, tail = chat.prompter.head, chat.prompter.tail
    place = len(head) + 80
    damages = {
        audit.TEMPLATE: [5, *answer.prompt],
        audit.DOCUMENT: answer.prompt[:place] + answer.prompt[place + 1 :],
        audit.ENDING: answer.prompt[:-1],
        audit.QUESTION: head + chat.prompter.text("no question. Ada was born in") + tail,
    }
    for problem, ids in damages.items():
        answer.prompt, answer.input_tokens = ids, len(ids)
        assert problem in audit.problems(QUESTION, answer, DOCUMENTS, chat)


def test_a_template_names_its_own_tokens_and_every_end_ends(tmp_path) -> None:
    words = tokenizer("<s>", "<|turn|>", "<|eot|>", "<|end|>")
    ids = {token: words.token_to_id(token) for token in ("<s>", "<|turn|>", "<|eot|>", "<|end|>")}
    checkpoint(tmp_path, words, LLAMA, bos_token_id=ids["<s>"], eos_token_id=ids["<|end|>"])
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [ids["<|end|>"], ids["<|eot|>"]]}))
    reader = Reader(tmp_path, 1)
    assert whole(reader, reader.prompter.head) == "<s><|turn|>user\n\n"
    assert whole(reader, reader.prompter.tail) == "<|eot|><|turn|>assistant\n\n"
    assert reader.prompter.ends == {ids["<|end|>"], ids["<|eot|>"]}


def test_a_model_without_template_or_special_tokens_goes_on_behind_the_request(tmp_path) -> None:
    words = tokenizer("<|endoftext|>")
    checkpoint(tmp_path, words, None, eos_token_id=words.token_to_id("<|endoftext|>"))
    reader = Reader(tmp_path, 1)
    (found,) = reader.answer([(DOCUMENTS, QUESTION)])
    assert isinstance(reader.prompter, ChatPrompter)
    assert whole(reader, found.prompt).endswith("Ada was born in\n")
    assert reader.prompter.ends == {words.token_to_id("<|endoftext|>")}
    with pytest.raises(UserError, match="has no token"):  # MSA itself needs them
        read.open_model(tmp_path)


def test_what_was_trained_on_this_projects_wording_is_asked_in_it(tmp_path) -> None:
    words = tokenizer(*prompts.SPECIAL_TOKENS)
    checkpoint(tmp_path, words, None)
    (found,) = Reader(tmp_path, 1).answer([(DOCUMENTS, QUESTION)])
    assert words.decode(found.prompt, skip_special_tokens=False).startswith("<|im_start|>user\n[17]. Ada")


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ raise_exception('no users') }}", r"cannot be rendered \(no users\)"),
        ("{% for %}", "cannot be rendered"),
        ("{{ messages[0].content.__class__.__mro__ }}", "cannot be rendered|does not give"),
        ("hello", "does not give a user's message once"),
        ("{{ messages[0].content }}{{ messages[0].content }}", "does not give a user's message once"),
    ],
)
def test_a_template_that_gives_no_prompt_is_named(tmp_path, template, message) -> None:
    checkpoint(tmp_path, tokenizer(prompts.IM_END), template)
    with pytest.raises(UserError, match=rf"^{tmp_path}/model.safetensors: its chat template .*({message})"):
        Reader(tmp_path, 1)
