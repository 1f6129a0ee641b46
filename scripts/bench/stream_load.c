/* A load generator for the fake engine: one epoll thread, loopback only.
 *
 *   stream_load PORT CONNECTIONS SECONDS n|s CHUNKS US [RATE [PAD]]
 *
 * n: non-streaming, s: streaming (CHUNKS every US microseconds). RATE 0: closed loop, one request after the other on each
 * connection; else requests per second on whichever connection is free; where none is, the request goes late, is counted as
 * such, and its latency counts from when it was due. PAD: bytes of prompt. Every request has a prompt
 * and a trace id of its own, eight in turn share a workflow: no two are equal. The first fifth of the time is warm-up (all_* counts include it). Prints one line of JSON: requests, chunks, errors, late requests, and percentiles of TTFT, end to end and the one-way delay
 * of each chunk (send stamp in the chunk to its read here), in ms.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

enum { BUFFER = 1 << 16 };
typedef struct {
    int fd, length, busy, head, want, seen;
    int64_t sent, first, start;
    char in[BUFFER];
} Conn;
typedef struct {
    float *at;
    size_t count, capacity;
} Series;

static int port, streaming, chunks, epfd, request_size;
static char *request, *varied[3]; /* where the digits stand that differ from request to request */
static uint64_t fired_requests;
static Series ttft, total, delay;
static uint64_t requests, events, errors, late, all_requests, all_events;
static int64_t warm;

static int64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static void add(Series *s, double ms) {
    if (s->count == s->capacity) {
        s->capacity = s->capacity ? 2 * s->capacity : 65536;
        s->at = realloc(s->at, s->capacity * sizeof *s->at);
    }
    s->at[s->count++] = (float)ms;
}

static int compare(const void *a, const void *b) {
    float x = *(const float *)a, y = *(const float *)b;
    return x < y ? -1 : x > y;
}

static double at(Series *s, double q) { return s->count ? s->at[(size_t)(q * (double)(s->count - 1))] : -1; }

static void dial(Conn *c) {
    struct sockaddr_in address = {AF_INET, htons(port), {htonl(INADDR_LOOPBACK)}, {0}};
    int one = 1;
    c->fd = socket(AF_INET, SOCK_STREAM, 0);
    if (connect(c->fd, (void *)&address, sizeof address)) perror("connect"), exit(1);
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    fcntl(c->fd, F_SETFL, O_NONBLOCK);
    epoll_ctl(epfd, EPOLL_CTL_ADD, c->fd, &(struct epoll_event){EPOLLIN, {.ptr = c}});
    c->length = c->busy = 0;
}

static void digits(char *at, uint64_t value) {
    for (int i = 7; i >= 0; i--, value /= 10) at[i] = (char)('0' + value % 10);
}

static void fire(Conn *c) {
    uint64_t number = fired_requests++;
    digits(varied[0], number / 8);
    digits(varied[1], number);
    digits(varied[2], number);
    c->busy = 1;
    c->head = c->want = c->seen = c->length = 0;
    c->first = 0;
    c->sent = now_ns();
    for (int done = 0; done < request_size;) {
        int n = (int)write(c->fd, request + done, request_size - done);
        if (n > 0) done += n;
        else if (errno != EAGAIN) { errors++; return; }
        else nanosleep(&(struct timespec){0, 50000}, NULL);
    }
}

static void finish(Conn *c, int good) {
    int64_t t = now_ns();
    c->busy = 0;
    all_requests++;
    if (!good || (streaming && c->seen != chunks)) errors++;
    else if (c->sent >= warm) {
        requests++;
        add(&total, (t - c->sent) / 1e6);
        add(&ttft, (c->first - c->sent) / 1e6);
    }
}

static void read_head(Conn *c) {
    char *end = strstr(c->in, "\r\n\r\n");
    if (!end) return;
    *end = 0;
    char *given = strcasestr(c->in, "\r\ncontent-length:");
    c->want = given ? atoi(given + 17) : -1;
    if (strncmp(c->in + 9, "200", 3)) errors++;
    int size = (int)(end + 4 - c->in);
    c->length -= size;
    memmove(c->in, c->in + size, c->length + 1);
    c->head = 1;
}

/* Count the stamped chunks in the buffer, keep what is not whole; 1 when the reply is complete. */
static int scan(Conn *c, int64_t t) {
    char *from = c->in, *end = c->in + c->length;
    for (;;) {
        char *mark = memmem(from, end - from, "~T", 2);
        char *line = mark ? memchr(mark, '\n', end - mark) : NULL;
        if (!line) break;
        c->seen++;
        all_events++;
        events += c->sent >= warm;
        if (c->sent >= warm) add(&delay, (t - strtoll(mark + 2, NULL, 10)) / 1e6);
        from = line + 1;
    }
    int left = (int)(end - from);
    if (left >= 5 && !memcmp(end - 5, "0\r\n\r\n", 5) && memmem(from, left, "[DONE]", 6)) return 1;
    memmove(c->in, from, left);
    c->length = left;
    return 0;
}

static void readable(Conn *c, int closed_loop) {
    int got = (int)read(c->fd, c->in + c->length, BUFFER - 1 - c->length);
    if (got < 0 && errno == EAGAIN) return;
    if (got <= 0) {
        if (c->busy) finish(c, 0);
        close(c->fd);
        dial(c);
        if (closed_loop) fire(c);
        return;
    }
    int64_t t = now_ns();
    c->length += got;
    c->in[c->length] = 0;
    if (!c->head) read_head(c);
    if (!c->head) return;
    if (c->length && !c->first) c->first = t;
    if (streaming ? scan(c, t) : c->length >= c->want) {
        finish(c, 1);
        if (closed_loop) fire(c);
    }
}

static void prepare(long us, int pad) {
    char *body = malloc(pad + 1024), *fill = malloc(pad + 1);
    memset(fill, 'x', pad);
    fill[pad] = 0;
    if (pad < 8) fprintf(stderr, "PAD: at least 8\n"), exit(2);
    memcpy(fill, "00000000", 8);
    int size = sprintf(body, "{\"model\":\"fake-%d-%ld\",\"messages\":[{\"role\":\"system\",\"content\":\"You are a helpful "
                       "assistant.\"},{\"role\":\"user\",\"content\":\"%s\"}],\"max_tokens\":%d%s}", chunks, us, fill, chunks,
                       streaming ? ",\"stream\":true,\"stream_options\":{\"include_usage\":true}" : "");
    request = malloc(size + 2048);
    request_size = sprintf(request,
        "POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nAccept-Encoding: gzip, deflate\r\n"
        "Connection: keep-alive\r\nAccept: application/json\r\nContent-Type: application/json\r\n"
        "User-Agent: OpenAI/Python 3.0.0\r\nX-Stainless-Lang: python\r\nX-Stainless-Package-Version: 3.0.0\r\n"
        "X-Stainless-OS: Linux\r\nX-Stainless-Arch: x64\r\nX-Stainless-Runtime: CPython\r\n"
        "X-Stainless-Runtime-Version: 3.11.7\r\nAuthorization: Bearer sk-test-0123456789abcdef\r\nX-Workflow-Id: wf-00000000\r\n"
        "traceparent: 00-0af7651916cd43dd8448eb2100000000-b7ad6b7169203331-01\r\nContent-Length: %d\r\n\r\n%s",
        port, size, body);
    varied[0] = strstr(request, "wf-00000000") + 3;
    varied[1] = strstr(request, "eb2100000000") + 4;
    varied[2] = strstr(request, "\"content\":\"00000000") + 11;
}

int main(int argc, char **argv) {
    if (argc < 7) return fprintf(stderr, "usage: stream_load PORT CONNECTIONS SECONDS n|s CHUNKS US [RATE [PAD]]\n"), 2;
    port = atoi(argv[1]);
    int count = atoi(argv[2]), pad = argc > 8 ? atoi(argv[8]) : 300;
    double seconds = atof(argv[3]), rate = argc > 7 ? atof(argv[7]) : 0;
    streaming = argv[4][0] == 's';
    chunks = atoi(argv[5]);
    long us = atol(argv[6]);
    setrlimit(RLIMIT_NOFILE, &(struct rlimit){65535, 65535});
    prepare(us, pad);
    epfd = epoll_create1(0);
    Conn *conns = calloc(count, sizeof *conns);
    for (int i = 0; i < count; i++) dial(&conns[i]);
    int64_t start = now_ns(), end = start + (int64_t)(seconds * 1e9), next = start, gap = rate > 0 ? (int64_t)(1e9 / rate) : 0;
    warm = start + (int64_t)(seconds * 0.2e9);
    int fired = rate > 0 ? count : 0, turn = 0, waits = 0; /* closed loop: streams start spread over their own length */
    int64_t spread = us && streaming ? (int64_t)chunks * us * 900 / count : 0;
    for (int64_t t; (t = now_ns()) < end;) {
        while (fired < count && start + fired * spread <= t) fire(&conns[fired++]);
        int full = 0;
        while (gap && next <= t) {
            int k = 0;
            while (k < count && conns[(turn + k) % count].busy) k++;
            if ((full = k == count)) break;
            fire(&conns[turn = (turn + k) % count]);
            if (waits) late++, conns[turn].sent = next;
            next += gap;
            waits = waits && next <= t;
        }
        waits = waits || full;
        int64_t wait = full ? 100000000 : gap ? next - now_ns() : fired < count ? 1000000 : 100000000;
        struct timespec limit = {0, wait < 0 ? 0 : wait > 100000000 ? 100000000 : wait};
        struct epoll_event ready[512];
        int n = epoll_pwait2(epfd, ready, 512, &limit, NULL);
        for (int i = 0; i < n; i++) readable(ready[i].data.ptr, !gap);
    }
    Series *all[] = {&ttft, &total, &delay};
    for (int i = 0; i < 3; i++) qsort(all[i]->at, all[i]->count, sizeof(float), compare);
    double elapsed = (now_ns() - warm) / 1e9;
    printf("{\"requests\":%lu,\"requests_s\":%.1f,\"chunks\":%lu,\"chunks_s\":%.0f,\"all_requests\":%lu,\"all_chunks\":%lu,\"errors\":%lu,\"late\":%lu,\"ttft_p50\":%.3f,"
           "\"ttft_p99\":%.3f,\"e2e_p50\":%.3f,\"e2e_p99\":%.3f,\"chunk_p50\":%.3f,\"chunk_p99\":%.3f}\n",
           requests, requests / elapsed, events, events / elapsed, all_requests, all_events, errors, late, at(&ttft, .5), at(&ttft, .99), at(&total, .5),
           at(&total, .99), at(&delay, .5), at(&delay, .99));
    return 0;
}
