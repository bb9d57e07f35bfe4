#!/usr/bin/env python3
"""Whole models in the runtimes that the formats are for: mlx-lm, llama.cpp (in the package xllamacpp) and transformers.

One job for each recipe. In each runtime: the model loads without a tensor left over, tokens are those of Quarry, and
perplexity of 20 windows is within 1 % of what the job reports (llama.cpp: 3 %, it rounds activations to 8 bits). mlx-lm
generates 40 greedy tokens equal to those of the same weights in float32. fable-tiny always; with QUARRY_RUNTIMES=full also
larger models of ../shared. Packages may be missing without a package index only.
"""
import os
import sys
import tempfile

os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", TRANSFORMERS_VERBOSITY="error")
sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import whole_models as wm  # noqa: E402
from fleet import Tap  # noqa: E402

LIMIT, LLAMA_CPP_LIMIT = 0.01, 0.03
PROMPT, GENERATED = 16, 40


class Run:
    """A source and a recipe on their way through the runtimes."""

    def __init__(self, tap, source, recipe, folder):
        self.tap, self.source, self.recipe, self.folder = tap, source, recipe, folder
        self.text, self.ids = source.prompt_and_ids()
        self.made = self.plain = None

    def case(self, text, function, *args):
        self.tap.case(f"{self.source.name}, {self.recipe.name}: {text}", function, self, *args)

    def perplexity(self, runtime, model, what, limit=LIMIT):
        got = runtime.perplexity(model, self.ids, wm.WINDOWS, self.source.seq_len)
        wm.within(limit, what, got, self.made.perplexity)


def job(run):
    run.made = wm.make(run.source, run.recipe, run.folder)


def files(run, name):
    wm.check_files(name, run.made.path(name), wm.tensor_names(run.source.folder))


def mlx_tokens(tokenizer, run):
    ids = tokenizer.encode(run.text)
    assert ids == run.ids, "mlx-lm cuts the text into other tokens"


def mlx_quantized(run):
    import in_mlx
    model, tokenizer = in_mlx.opened(run.made.path("mlx"))
    mlx_tokens(tokenizer, run)
    assert len(in_mlx.quantized_modules(model)) > 0
    run.perplexity(in_mlx, model, "mlx-lm")
    plain, _ = in_mlx.opened(run.made.path("dense-f32"))
    got, wanted = (in_mlx.greedy(m, run.ids[:PROMPT], GENERATED) for m in (model, plain))
    assert len(wanted) == GENERATED and got == wanted, f"{got} are not the tokens of dense-f32, {wanted}"


def llama_cpp(run, lib):
    from gguf import GGUFReader
    from llama_cpp import Model
    path = os.path.join(run.made.path("gguf"), "model.gguf")
    assert os.listdir(os.path.dirname(path)).count("model.gguf") == 1
    types = sorted({t.tensor_type.name for t in GGUFReader(path).tensors})
    print(f"# types {' '.join(types)}")
    with Model(lib, path, run.source.seq_len) as model:
        assert model.tokens(run.text) == run.ids, "llama.cpp cuts the text into other tokens"
        wm.within(LLAMA_CPP_LIMIT, "llama.cpp", model.perplexity(run.ids, wm.WINDOWS), run.made.perplexity)
        ids = run.ids[:PROMPT]
        for _ in range(GENERATED):
            ids = ids + [int(model.logits(ids)[-1].argmax())]
    assert len(set(ids[PROMPT:])) > 1, f"generated {ids[PROMPT:]}"


def transformers(run, name):
    import in_transformers
    folder = run.made.path(name)
    reader = {"compressed-tensors": in_transformers.opened_compressed, "gptq": in_transformers.unpacked,
              "awq": in_transformers.unpacked}.get(name, in_transformers.opened)
    assert in_transformers.tokens(folder, run.text) == run.ids, "transformers cuts the text into other tokens"
    run.perplexity(in_transformers, reader(folder), "transformers")


def one_recipe(tap, lib, source, recipe):
    with tempfile.TemporaryDirectory() as folder:
        run = Run(tap, source, recipe, folder)
        run.case("quantized", job)
        if not run.made:
            return
        for name in recipe.formats:
            if name == "gguf":
                run.case("gguf in llama.cpp", llama_cpp, lib)
                continue
            run.case(f"{name} opened by safetensors", files, name)
            if name == "mlx":
                run.case("mlx in mlx-lm", mlx_quantized)
            else:
                run.case(f"{name} in transformers", transformers, name)


def missing_package():
    try:
        import gguf  # noqa: F401
        import mlx_lm  # noqa: F401
        import safetensors  # noqa: F401
        import transformers  # noqa: F401
        import xllamacpp  # noqa: F401
    except ImportError as problem:
        return problem
    return None


def main():
    tap = Tap()
    problem = missing_package()
    if problem and os.environ.get("QUARRY_RUNTIMES_OFFLINE"):
        tap.skip("whole models in real runtimes", f"the package index cannot be reached and a package is missing: {problem}")
        tap.end()
    if problem:
        raise problem
    from llama_cpp import open_library
    lib = open_library()
    sources = [wm.TINY]
    for source in wm.LARGE:
        if os.environ.get("QUARRY_RUNTIMES") != "full":
            tap.skip(source.name, "QUARRY_RUNTIMES=full is not set")
        elif not os.path.exists(source.folder):
            tap.skip(source.name, f"{source.folder} is not there")
        else:
            sources.append(source)
    for source in sources:
        for recipe in wm.RECIPES:
            one_recipe(tap, lib, source, recipe)
    tap.end()


if __name__ == "__main__":
    main()
