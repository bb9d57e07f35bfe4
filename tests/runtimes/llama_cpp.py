"""llama_cpp.py - llama.cpp's own C interface, through the shared object that the package xllamacpp brings along.

Parameter structs are taken from the library's defaults as opaque bytes and passed on; only their first members, which have
not moved in years, are set, and checked against the known defaults first.
"""
import ctypes
import glob
import math
import os

import numpy as np

KNOWN_DEFAULTS = [512, 2048, 512, 1]    # n_ctx, n_batch, n_ubatch, n_seq_max


class Opaque(ctypes.Structure):
    _fields_ = [("word", ctypes.c_uint32 * 256)]


class Batch(ctypes.Structure):
    _fields_ = [("n_tokens", ctypes.c_int32), ("token", ctypes.POINTER(ctypes.c_int32)), ("embd", ctypes.c_void_p),
                ("pos", ctypes.POINTER(ctypes.c_int32)), ("n_seq_id", ctypes.POINTER(ctypes.c_int32)),
                ("seq_id", ctypes.POINTER(ctypes.POINTER(ctypes.c_int32))), ("logits", ctypes.POINTER(ctypes.c_int8))]


def open_library():
    """The library, or None when the package is not there."""
    try:
        import xllamacpp
    except ImportError:
        return None
    path = glob.glob(os.path.join(os.path.dirname(xllamacpp.__file__), "xllamacpp*.so"))[0]
    lib = ctypes.CDLL(path)
    pointer = ctypes.c_void_p
    for name, result, arguments in (
            ("llama_model_default_params", Opaque, []),
            ("llama_context_default_params", Opaque, []),
            ("llama_model_load_from_file", pointer, [ctypes.c_char_p, Opaque]),
            ("llama_init_from_model", pointer, [pointer, Opaque]),
            ("llama_model_get_vocab", pointer, [pointer]),
            ("llama_vocab_n_tokens", ctypes.c_int32, [pointer]),
            ("llama_tokenize", ctypes.c_int32, [pointer, ctypes.c_char_p, ctypes.c_int32, ctypes.POINTER(ctypes.c_int32),
                                                ctypes.c_int32, ctypes.c_bool, ctypes.c_bool]),
            ("llama_batch_init", Batch, [ctypes.c_int32] * 3),
            ("llama_batch_free", None, [Batch]),
            ("llama_decode", ctypes.c_int32, [pointer, Batch]),
            ("llama_get_logits_ith", ctypes.POINTER(ctypes.c_float), [pointer, ctypes.c_int32]),
            ("llama_get_memory", pointer, [pointer]),
            ("llama_memory_clear", None, [pointer, ctypes.c_bool]),
            ("llama_free", None, [pointer]),
            ("llama_model_free", None, [pointer])):
        function = getattr(lib, name)
        function.restype, function.argtypes = result, arguments
    silence(lib)
    lib.llama_backend_init()
    return lib


def silence(lib):
    """Keeps what the library says; the last lines explain a failure."""
    kind = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
    lib.said = []
    lib.hear = kind(lambda level, text, data: lib.said.append(text.decode(errors="replace")))
    lib.llama_log_set(lib.hear, None)


class Model:
    def __init__(self, lib, path, context):
        self.lib = lib
        self.context_size = context
        self.model = lib.llama_model_load_from_file(path.encode(), lib.llama_model_default_params())
        if not self.model:
            raise RuntimeError("llama.cpp does not load it: " + "".join(lib.said[-6:]))
        self.vocab = lib.llama_model_get_vocab(self.model)
        params = lib.llama_context_default_params()
        found = list(params.word[:4])
        if found != KNOWN_DEFAULTS:
            raise RuntimeError(f"the library's context parameters begin with {found}, not {KNOWN_DEFAULTS}")
        params.word[0] = params.word[1] = params.word[2] = context
        self.context = lib.llama_init_from_model(self.model, params)
        if not self.context:
            raise RuntimeError("llama.cpp makes no context: " + "".join(lib.said[-6:]))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.lib.llama_free(self.context)
        self.lib.llama_model_free(self.model)

    def tokens(self, text, special=True):
        raw = text.encode()
        room = (ctypes.c_int32 * (len(raw) + 16))()
        n = self.lib.llama_tokenize(self.vocab, raw, len(raw), room, len(room), special, False)
        assert n >= 0, n
        return list(room[:n])

    def logits(self, ids):
        """(len(ids), vocabulary) of one window."""
        batch = self.lib.llama_batch_init(len(ids), 0, 1)
        batch.n_tokens = len(ids)
        for i, token in enumerate(ids):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = token, i, 1, 1
            batch.seq_id[i][0] = 0
        self.lib.llama_memory_clear(self.lib.llama_get_memory(self.context), True)
        status = self.lib.llama_decode(self.context, batch)
        assert status == 0, f"llama_decode() gave {status}: " + "".join(self.lib.said[-4:])
        width = self.lib.llama_vocab_n_tokens(self.vocab)
        rows = [np.ctypeslib.as_array(self.lib.llama_get_logits_ith(self.context, i), (width,)).copy()
                for i in range(len(ids))]
        self.lib.llama_batch_free(batch)
        return np.array(rows, dtype=np.float64)

    def perplexity(self, ids, windows):
        """Windows of the whole context, one after another; each token but the first is predicted."""
        total, count, size = 0.0, 0, self.context_size
        for w in range(windows):
            part = ids[w * size:(w + 1) * size]
            logits = self.logits(part)
            top = logits.max(1)
            log_sum = top + np.log(np.exp(logits - top[:, None]).sum(1))
            picked = logits[np.arange(size - 1), part[1:]]
            total += float((log_sum[:-1] - picked).sum())
            count += size - 1
        return math.exp(total / count)
