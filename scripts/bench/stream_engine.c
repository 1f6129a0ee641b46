/* A fake OpenAI engine, fast enough to be out of the way: one epoll thread, loopback only.
 *
 *   stream_engine PORT [-a]
 *
 * The model name says what to do: "fake-N-US" streams N chunks every US microseconds (0: all at once); each chunk carries
 * its send time as ~T<monotonic ns>~ in its text, so a client on the same host knows the one-way delay. Non-streaming
 * requests get one small JSON body. -a puts all streams on one step grid, as a real engine's batch does.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

typedef struct Conn {
    int fd, length, capacity, streaming, sent, chunks, closed, queued;
    char *in;
    int64_t every, due;
    struct Conn *next;
} Conn;

static Conn *first;          /* streams in order of their next chunk */
static int aligned;
static volatile sig_atomic_t leave;

static int64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static void on_signal(int number) { leave = number; }

static int write_all(int fd, const char *data, int size) {
    for (int at = 0; at < size;) {
        int done = (int)write(fd, data + at, size - at);
        if (done >= 0) at += done;
        else if (errno == EAGAIN) nanosleep(&(struct timespec){0, 100000}, NULL);
        else return -1;
    }
    return 0;
}

static int frame(char *out, const char *event) { return sprintf(out, "%zx\r\n%s\r\n", strlen(event), event); }

#define HEAD "{\"id\":\"chatcmpl-bench\",\"object\":\"chat.completion.chunk\",\"created\":1790000000,\"model\":\"fake\","

static int token(char *out) {
    char event[512];
    sprintf(event, "data: " HEAD "\"choices\":[{\"index\":0,\"delta\":{\"content\":\"~T%lld~\"},\"logprobs\":null,"
            "\"finish_reason\":null}]}\n\n", (long long)now_ns());
    return frame(out, event);
}

static int ending(char *out, int chunks) {
    char event[512];
    sprintf(event, "data: " HEAD "\"choices\":[],\"usage\":{\"prompt_tokens\":37,\"total_tokens\":%d,"
            "\"completion_tokens\":%d}}\n\n", 37 + chunks, chunks);
    int size = frame(out, event);
    size += frame(out + size, "data: [DONE]\n\n");
    memcpy(out + size, "0\r\n\r\n", 5);
    return size + 5;
}

static void enqueue(Conn *c) {
    Conn **at = &first;
    while (*at && (*at)->due <= c->due) at = &(*at)->next;
    c->next = *at;
    *at = c;
    c->queued = 1;
}

static int step(Conn *c) {
    char out[2048];
    int size = token(out);
    if (++c->sent == c->chunks) {
        size += ending(out + size, c->chunks);
        c->streaming = 0;
    }
    return write_all(c->fd, out, size);
}

static int burst(Conn *c) {
    char *out = malloc(512 * (size_t)(c->chunks + 4));
    int size = 0;
    for (int i = 0; i < c->chunks; i++) size += token(out + size);
    size += ending(out + size, c->chunks);
    int rc = write_all(c->fd, out, size);
    free(out);
    return rc;
}

static const char STREAM_HEAD[] =
    "HTTP/1.1 200 OK\r\ndate: Sun, 22 Nov 2026 00:00:00 GMT\r\nserver: uvicorn\r\n"
    "content-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n";
static const char BODY[] =
    "{\"id\":\"chatcmpl-bench\",\"object\":\"chat.completion\",\"created\":1790000000,\"model\":\"fake\",\"choices\":["
    "{\"index\":0,\"message\":{\"role\":\"assistant\",\"content\":\"The quick brown fox jumps over the lazy dog and "
    "then goes home.\"},\"logprobs\":null,\"finish_reason\":\"stop\"}],\"usage\":{\"prompt_tokens\":37,"
    "\"total_tokens\":57,\"completion_tokens\":20}}";

static int answer(Conn *c, char *request, int size) {
    char after = request[size];
    request[size] = 0;
    int stream = strstr(request, "\"stream\":true") != NULL, chunks = 64;
    long us = 5000;
    char *model = strstr(request, "fake-");
    if (model) sscanf(model, "fake-%d-%ld", &chunks, &us);
    request[size] = after;
    if (!stream) {
        char out[1024];
        int n = sprintf(out, "HTTP/1.1 200 OK\r\nserver: uvicorn\r\ncontent-type: application/json\r\n"
                        "content-length: %zu\r\n\r\n%s", sizeof BODY - 1, BODY);
        return write_all(c->fd, out, n);
    }
    if (write_all(c->fd, STREAM_HEAD, sizeof STREAM_HEAD - 1)) return -1;
    c->chunks = chunks;
    c->sent = 0;
    c->every = us * 1000;
    if (!us) return burst(c);
    int64_t t = now_ns();
    c->streaming = 1;
    c->due = aligned ? (t / c->every + 1) * c->every : t + c->every;
    enqueue(c);
    return 0;
}

/* Answer every complete request in the buffer; requests have a Content-Length, as the clients here send it. */
static int take(Conn *c) {
    while (!c->streaming) {
        c->in[c->length] = 0;
        char *end = strstr(c->in, "\r\n\r\n");
        if (!end) return 0;
        *end = 0;
        char *given = strcasestr(c->in, "\r\ncontent-length:");
        *end = '\r';
        int size = (int)(end + 4 - c->in) + (given ? atoi(given + 17) : 0);
        if (c->length < size) return 0;
        if (answer(c, c->in, size)) return -1;
        memmove(c->in, c->in + size, c->length - size);
        c->length -= size;
    }
    return 0;
}

static void release(Conn *c) {
    if (!c->closed) close(c->fd);
    c->closed = 1;
    if (!c->queued) {
        free(c->in);
        free(c);
    }
}

static void accept_all(int ep, int listener) {
    int one = 1, fd;
    while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0) {
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        Conn *c = calloc(1, sizeof *c);
        c->fd = fd;
        c->capacity = 16384;
        c->in = malloc(c->capacity + 1);
        epoll_ctl(ep, EPOLL_CTL_ADD, fd, &(struct epoll_event){EPOLLIN, {.ptr = c}});
    }
}

static void readable(Conn *c) {
    if (c->capacity - c->length < 4096) {
        c->capacity *= 2;
        c->in = realloc(c->in, c->capacity + 1);
    }
    int got = (int)read(c->fd, c->in + c->length, c->capacity - c->length);
    if (got > 0) c->length += got;
    if (got == 0 || (got < 0 && errno != EAGAIN) || (got > 0 && take(c))) release(c);
}

static void run_due(void) {
    int64_t until = now_ns() + 50000;
    while (first && first->due <= until) {
        Conn *c = first;
        first = c->next;
        c->queued = 0;
        if (c->closed || step(c)) release(c);
        else if (c->streaming) {
            c->due += c->every;
            enqueue(c);
        } else if (c->length && take(c)) release(c);
    }
}

int main(int argc, char **argv) {
    if (argc < 2) return fprintf(stderr, "usage: stream_engine PORT [-a]\n"), 2;
    aligned = argc > 2 && !strcmp(argv[2], "-a");
    signal(SIGPIPE, SIG_IGN);
    signal(SIGTERM, on_signal);
    setrlimit(RLIMIT_NOFILE, &(struct rlimit){65535, 65535});
    int one = 1, listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), ep = epoll_create1(0);
    struct sockaddr_in address = {AF_INET, htons(atoi(argv[1])), {htonl(INADDR_LOOPBACK)}, {0}};
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(listener, (void *)&address, sizeof address) || listen(listener, 4096)) return perror("bind"), 1;
    int timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK);
    epoll_ctl(ep, EPOLL_CTL_ADD, listener, &(struct epoll_event){EPOLLIN, {.ptr = &listener}});
    epoll_ctl(ep, EPOLL_CTL_ADD, timer, &(struct epoll_event){EPOLLIN | EPOLLET, {.ptr = &timer}});
    for (int64_t armed = 0; !leave;) {
        if (first && first->due != armed) {
            armed = first->due;
            struct itimerspec at = {{0, 0}, {armed / 1000000000LL, armed % 1000000000LL}};
            timerfd_settime(timer, TFD_TIMER_ABSTIME, &at, NULL);
        }
        struct epoll_event events[256];
        int count = epoll_wait(ep, events, 256, 1000);
        for (int i = 0; i < count; i++) {
            if (events[i].data.ptr == &timer) continue;
            if (events[i].data.ptr == &listener) accept_all(ep, listener);
            else if (!((Conn *)events[i].data.ptr)->closed) readable(events[i].data.ptr);
        }
        run_due();
    }
    return 0;
}
