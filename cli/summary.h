/* summary.h - what a finished quantization cost, for people: from the job, its report and the folder it lies in. */
#ifndef QUARRY_CLI_SUMMARY_H
#define QUARRY_CLI_SUMMARY_H

#include "common/err.h"
#include "common/json.h"

/* On stdout. OUT_DIR holds report.json and a folder per format. */
int summary_print(const struct json *job, const char *out_dir, double seconds, struct err *err);
/* Bytes of the *.safetensors files directly in a folder; 0 when there is none. */
double weights_bytes(const char *dir);

#endif
