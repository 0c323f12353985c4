"""A tokenizer and a small data folder (as `gsa data prepare` makes them) from documents in memory, for tests and benches."""
import hashlib
import json
import pathlib

import numpy
import safetensors.numpy
import tokenizers


def train_tokenizer(path, documents, vocab_size):
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=["<|endoftext|>"], show_progress=False,
                                             initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(documents, trainer)
    tokenizer.save(str(path))
    return tokenizer


def write_token_folder(folder, documents, vocab_size):
    """Trains a tokenizer of at most `vocab_size` tokens on the documents and writes them as one train shard."""
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True)
    tokenizer = train_tokenizer(folder / "tokenizer.json", documents, vocab_size)
    end = tokenizer.token_to_id("<|endoftext|>")
    encoded = [encoding.ids + [end] for encoding in tokenizer.encode_batch(documents)]
    arrays = dict(documents=numpy.cumsum([0] + [len(ids) for ids in encoded]).astype(numpy.int64),
                  tokens=numpy.concatenate(encoded).astype(numpy.uint16))
    shard = folder / "train-00000.safetensors"
    safetensors.numpy.save_file(arrays, shard)
    count = dict(documents=len(encoded), tokens=len(arrays["tokens"]))
    digest = lambda path: "sha256:" + hashlib.sha256(path.read_bytes()).hexdigest()
    manifest = dict(format="gsa token shards", version=1, separator=end,
                    tokenizer=dict(hash=digest(folder / "tokenizer.json"), vocab_size=tokenizer.get_vocab_size()),
                    splits=dict(train=dict(**count, shards=[dict(file=shard.name, **count, hash=digest(shard))])))
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=2))
