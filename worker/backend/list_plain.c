/* The backends of a program without an accelerator. */
#include "worker/backend/cpu/cpu.h"
#include "worker/backend/ref/ref.h"

const struct backend_ops *const backend_list[] = { &cpu_ops, &ref_ops, NULL };
const char backend_list_note[] = "; it was built without CUDA (make CUDA=1 adds it)";
