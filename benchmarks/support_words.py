"""What docs/support.md says besides its table."""

from __future__ import annotations

EXPLAINED = (
    "**cut**: a Student at half of these axes, run on views, gives what its dense copy gives.",
    "**lossless**: reordering the units leaves the outputs as they are.",
    "**grow**: adding units (or layers) leaves the outputs as they are; `no` where a norm sees "
    "them.",
    "**stock alone**, **stock all**: what loads a Student at half of these axes, or at half of all "
    "of the architecture's: a library, `matta` for `matta_cli.load_student` by design, `no` where "
    "the library's format cannot express it (matta's own does).",
    "An encoder of texts alone, as for sentence embeddings, has no `hidden`: the order of its "
    "channels is the embedding. RoBERTa, DistilBERT and the others are alone as BERT is, and a "
    "head that classifies tokens nests as one that classifies texts.",
    "**auto**: whether `--adapter auto` finds the same axes by tracing; empty where it is not "
    "asked.",
)

# what was looked at and is as it is, a paragraph each
DECIDED = (
    "",
    "## What is not nested, and why",
    "",
    "**Experts of a mixture** are not an axis. They could be cut: experts, their rows in the "
    "router and the units in each expert are dimensions of named tensors. But a Student with fewer "
    "experts routes tokens otherwise, so that importance has to be measured at the router, all "
    "layers need as many experts for a stock checkpoint, and units of an expert could only be "
    "ordered alike in all experts of a layer, since an axis has one order. That is an adapter and "
    "a measure of its own, not a line in a table. `--adapter auto` nests what is not an expert, "
    "and names the tensors that it leaves whole.",
    "",
    "**Gemma 3n** is not opened as a ready-made TA. Its smaller widths are prefixes of the same "
    "weights, but its configuration does not say which: that of E4B has 35 layers and 16,384 units "
    "in each, and that E2B is 8,192 of these without the layers 20 to 24 stands in a data set "
    "beside the model (google/gemma3n-slicing-configs). What is guessed about a stranger's "
    "checkpoint would be wrong in silence. Its blocks also share keys and values, and keep only "
    "units that stand out among all of a block (`activation_sparsity_pattern`), so that growing is "
    "not lossless, and depth not a cut.",
    "",
    "## How sequences begin",
    "",
    "Where the tokenizer's own call puts a token before a text (`<s>`, `<bos>`), documents begin "
    "with it, and so does each sequence, in training and in evaluation: models that have seen no "
    "text without it are worse at such text, and so is what they teach. A sequence of 512 tokens "
    "then holds 511 of the text. The first of these is read and not predicted, as it is without "
    "such a token. Perplexities of these models are lower than those of tools that cut a stream "
    "without it. Tokenizers that add none (GPT-2's, SmolLM2's) are not concerned.",
    "",
    "## Fewer tokens",
    "",
    "`matta convert MODEL --trim-vocab --data DATA` keeps of all tokens those that DATA has, "
    "in the tokenizer, the embedding and the output, before anything nests: in a multilingual"
    " encoder they are most of the parameters. Special and added tokens stay, single bytes "
    "and the characters of what is kept, and what a tokenizer needs to come to its tokens (of"
    " a BPE, what it merges on the way). Later data may have tokens that were left out: how "
    "many is counted and said, by distill and by eval (of texts, not of conversations); they "
    "are read in smaller pieces, or as unknown where a tokenizer has no bytes. What the "
    "tokenizer was is kept beside it for that, as `tokenizer-untrimmed.json.gz`, which may be "
    "removed. A Teacher of a language model may have the whole vocabulary that the model's was "
    "trimmed out of, such as the model itself.",
    "",
    "A text all of whose tokens are kept becomes the same tokens as before, with other "
    "numbers, and the model gives what it gave: convert proves the first on all of DATA and "
    "the second on some of it, and refuses where it is not so. Other texts still become "
    "tokens, smaller or unknown ones, so DATA should be like what the Student will read.",
    "",
    "It works with a tokenizer.json of the kinds WordPiece, WordLevel, Unigram and BPE (of "
    "bytes, or of characters; not one that marks the ends of words, or leaves merges to "
    "chance), and with every adapter that saves stock checkpoints of models that read tokens;"
    " `auto` is not one. A Teacher of texts keeps its own tokenizer; that of a language model"
    " must have the same tokens, or all that there were.",
)
