/* The dashboard, the API's description, health and metrics. */
#include <string.h>
#include <stdio.h>

#include "common/buf.h"
#include "common/version.h"
#include "server/embedded.h"
#include "server/reply.h"
#include "server/request.h"
#include "server/route_handlers.h"

enum { METRICS_MAX = 1024 * 1024 };

static const struct page { const char *path, *file, *type; } pages[] = {
	{ "/", "server/dashboard/index.html", "text/html; charset=utf-8" },
	{ "/app.js", "server/dashboard/app.js", "text/javascript; charset=utf-8" },
	{ "/style.css", "server/dashboard/style.css", "text/css; charset=utf-8" },
	{ "/icon.svg", "server/dashboard/icon.svg", "image/svg+xml" },
	{ "/api.yaml", "api.yaml", "application/yaml; charset=utf-8" },
};

static const struct embedded_file *find_embedded(const char *path)
{
	const struct embedded_file *f = embedded_files;

	while (f->path && strcmp(f->path, path) != 0)
		f++;
	return f->path ? f : NULL;
}

static const struct page *find_page(const char *path)
{
	for (size_t i = 0; i < sizeof(pages) / sizeof(pages[0]); i++)
		if (strcmp(pages[i].path, path) == 0)
			return &pages[i];
	return NULL;
}

void route_static(struct request *r)
{
	const struct page *page = find_page(r->route->pattern);
	const struct embedded_file *file = page ? find_embedded(page->file) : NULL;
	struct http_reply *reply = &r->x->reply;

	if (!file) {
		reply_problem_status(r->x, 404, ERR_NOT_FOUND, "%s is not part of this build",
				     r->route->pattern);
		return;
	}
	reply_static(r->x, file->bytes, file->size, page->type);
	http_field(reply, "Content-Security-Policy",
		   "default-src 'self'; base-uri 'none'; form-action 'none'; "
						     "frame-ancestors 'none'; object-src 'none'");
	http_field(reply, "Referrer-Policy", "no-referrer");
	http_field(reply, "X-Frame-Options", "DENY");
}

static void reply_object(struct request *r, struct json *o, int failed)
{
	if (!o || failed)
		reply_problem_status(r->x, 503, ERR_NOMEM, "out of memory for an answer");
	else
		reply_json(r->x, 200, o, "");
	json_free(o);
}

void route_livez(struct request *r)
{
	struct json *o = json_new_object();
	int failed = !o;

	if (o)
		failed = json_set_bool(o, "live", true) | json_set_string(o, "version", QUARRY_VERSION);
	reply_object(r, o, failed);
}

void route_readyz(struct request *r)
{
	struct json *o;
	char why[256] = "";

	if (!engine_ready(r->app->engine, why, sizeof(why))) {
		reply_problem_status(r->x, 503, ERR_UNAVAILABLE, "%s", why);
		return;
	}
	o = json_new_object();
	reply_object(r, o, !o || json_set_bool(o, "ready", true));
}

static void http_metrics(const struct http_exchange *x, struct app *a, struct buf *out)
{
	buf_puts(out, "# HELP quarry_http_replies_total Replies by hundreds of their status.\n"
		      "# TYPE quarry_http_replies_total counter\n");
	for (int class = 1; class < 6; class++)
		buf_printf(out, "quarry_http_replies_total{class=\"%dxx\"} %llu\n", class,
			   (unsigned long long)atomic_load(&a->replies[class]));
	buf_printf(out, "# HELP quarry_http_connections Open connections.\n"
			"# TYPE quarry_http_connections gauge\n"
			"quarry_http_connections %u\n"
			"# HELP quarry_http_parked Requests that wait for a change.\n"
			"# TYPE quarry_http_parked gauge\n"
			"quarry_http_parked %u\n",
		   http_connections(x), park_count(a->park));
}

void route_metrics(struct request *r)
{
	struct buf out;
	size_t len;

	buf_init(&out, METRICS_MAX);
	http_metrics(r->x, r->app, &out);
	if (engine_metrics(r->app->engine, &out, &r->err) != 0 || buf_failed(&out)) {
		if (r->err.code == ERR_NONE)
			err_set_nomem(&r->err, "the metrics");
		reply_problem(r->x, &r->err, NULL);
		buf_deinit(&out);
		return;
	}
	len = out.len;
	r->x->reply = (struct http_reply){
		.status = 200, .type = "text/plain; version=0.0.4; charset=utf-8", .kind = HTTP_BYTES,
		.bytes = buf_take(&out), .length = len, .fd = -1,
	};
	http_field(&r->x->reply, "X-Content-Type-Options", "nosniff");
}
