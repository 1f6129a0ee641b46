// A server that is never the bottleneck: OpenAI-style streams of N chunks, for measuring load generators and proxies.
//
//   cc -O2 -o sse_server sse_server.c && ./sse_server NCHUNKS burst|paced GAP_US LOGFILE
//
// Binds 127.0.0.1 on a free port and prints it. burst: the whole reply in one write. paced: head and first event after
// GAP_US, then one event per write every GAP_US; the last one goes out with finish, usage and [DONE].
// LOGFILE gets, on SIGTERM, the arrival (CLOCK_MONOTONIC ns, 8 bytes each) of every request's first byte.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { MAX_FD = 65536, MAX_CHUNKS = 4096, LOG_SIZE = 1 << 23, EVENTS = 512 };

typedef struct {
  char *in;
  size_t have, room, need;  // bytes read, capacity, length of the request once known (0: head incomplete)
  uint64_t t_first, due;    // arrival of the request's first byte; when the next chunk goes out
  int step;                 // next chunk; -1 when idle
} Conn;

typedef struct {
  uint64_t due;
  int fd;
} Timer;

static Conn conns[MAX_FD];
static Timer heap[MAX_FD * 2];
static int timers, chunks, paced, epoll_fd;
static uint64_t gap_ns, *arrivals, arrived;
static char *piece[2][MAX_CHUNKS], *whole[2];  // [0] chat, [1] completions
static size_t piece_len[2][MAX_CHUNKS], whole_len[2];
static volatile sig_atomic_t quit;

static const char HEAD[] =
    "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n";

static uint64_t now_ns(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static void on_term(int sig) { (void)sig, quit = 1; }

static void push(uint64_t due, int fd) {
  int i = timers++;
  for (; i > 0 && heap[(i - 1) / 2].due > due; i = (i - 1) / 2) heap[i] = heap[(i - 1) / 2];
  heap[i] = (Timer){due, fd};
}

static Timer pop(void) {
  Timer top = heap[0], last = heap[--timers];
  int i = 0;
  for (int c = 1; c < timers; c = 2 * i + 1) {
    if (c + 1 < timers && heap[c + 1].due < heap[c].due) c++;
    if (heap[c].due >= last.due) break;
    heap[i] = heap[c], i = c;
  }
  heap[i] = last;
  return top;
}

static char *framed(const char *event, size_t *len) {
  char *out = malloc(strlen(event) + 32);
  *len = (size_t)sprintf(out, "%zx\r\n%s\r\n", strlen(event), event);
  return out;
}

static void render(int kind) {
  const char *object = kind ? "text_completion" : "chat.completion.chunk", *id = kind ? "cmpl-0123456789abcdef" : "chatcmpl-0123456789abcdef";
  char event[1024], common[256];
  snprintf(common, sizeof common, "\"id\":\"%s\",\"object\":\"%s\",\"created\":1700000000,\"model\":\"bench\"", id, object);
  for (int i = 0; i < chunks; i++) {
    char text[64];
    snprintf(text, sizeof text, kind ? "\"text\":\" tok%d\"" : "\"delta\":{\"content\":\" tok%d\"}", i);
    snprintf(event, sizeof event, "data: {%s,\"choices\":[{\"index\":0,%s,\"logprobs\":null,\"finish_reason\":null}]}\n\n", common, text);
    piece[kind][i] = framed(event, &piece_len[kind][i]);
  }
  size_t len[3];
  snprintf(event, sizeof event, "data: {%s,\"choices\":[{\"index\":0,%s,\"logprobs\":null,\"finish_reason\":\"length\"}]}\n\n", common, kind ? "\"text\":\"\"" : "\"delta\":{}");
  char *finish = framed(event, &len[0]);
  snprintf(event, sizeof event, "data: {%s,\"choices\":[],\"usage\":{\"prompt_tokens\":32,\"total_tokens\":%d,\"completion_tokens\":%d}}\n\n", common, 32 + chunks, chunks);
  char *usage = framed(event, &len[1]), *done = framed("data: [DONE]\n\n", &len[2]);
  // the last content chunk carries the whole tail
  char *tail = malloc(piece_len[kind][chunks - 1] + len[0] + len[1] + len[2] + 16);
  piece_len[kind][chunks - 1] = (size_t)sprintf(tail, "%s%s%s%s0\r\n\r\n", piece[kind][chunks - 1], finish, usage, done);
  piece[kind][chunks - 1] = tail;
  size_t total = sizeof HEAD - 1, at = total;
  for (int i = 0; i < chunks; i++) total += piece_len[kind][i];
  whole[kind] = malloc(total);
  whole_len[kind] = total;
  memcpy(whole[kind], HEAD, at);
  for (int i = 0; i < chunks; at += piece_len[kind][i++]) memcpy(whole[kind] + at, piece[kind][i], piece_len[kind][i]);
}

static void drop(int fd) {
  epoll_ctl(epoll_fd, EPOLL_CTL_DEL, fd, NULL);
  close(fd);
  conns[fd].have = conns[fd].need = 0, conns[fd].step = -1, conns[fd].due = 0;
}

static int put(int fd, const char *data, size_t len) {
  while (len > 0) {
    ssize_t n = send(fd, data, len, MSG_NOSIGNAL);
    if (n < 0 && errno == EAGAIN) {
      usleep(50);
      continue;
    }
    if (n <= 0) return drop(fd), -1;
    data += n, len -= (size_t)n;
  }
  return 0;
}

// Length of the request at the start of the buffer, 0 while its head is incomplete.
static size_t request_length(Conn *c) {
  c->in[c->have] = 0;
  char *end = strstr(c->in, "\r\n\r\n"), *field = strcasestr(c->in, "\r\ncontent-length:");
  if (!end) return 0;
  return (size_t)(end - c->in) + 4 + (field && field < end ? (size_t)atol(field + 17) : 0);
}

static void answer(int fd) {
  Conn *c = &conns[fd];
  while (c->step < 0) {
    if (!c->need && c->have) c->need = request_length(c);
    if (!c->need || c->have < c->need) return;
    int post = !strncmp(c->in, "POST", 4), kind = strncmp(c->in, "POST /v1/chat", 13) ? 1 : 0;
    memmove(c->in, c->in + c->need, c->have - c->need);
    c->have -= c->need, c->need = 0;
    if (post && arrived < LOG_SIZE) arrivals[arrived++] = c->t_first;
    if (c->have) c->t_first = now_ns();
    if (!post) {
      static const char ok[] = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}";
      if (put(fd, ok, sizeof ok - 1)) return;
    } else if (!paced) {
      if (put(fd, whole[kind], whole_len[kind])) return;
    } else {
      if (put(fd, HEAD, sizeof HEAD - 1)) return;
      c->step = kind ? MAX_CHUNKS : 0;  // the kind rides above the step number
      push(c->due = now_ns() + gap_ns, fd);
    }
  }
}

static void advance(int fd) {
  Conn *c = &conns[fd];
  int kind = c->step >= MAX_CHUNKS, step = c->step % MAX_CHUNKS;
  if (put(fd, piece[kind][step], piece_len[kind][step])) return;
  if (step + 1 < chunks) {
    c->step++;
    push(c->due += gap_ns, fd);
  } else {
    c->step = -1, c->due = 0;
    answer(fd);
  }
}

static void welcome(int listener) {
  for (int fd; (fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0;) {
    int one = 1;
    if (fd >= MAX_FD) {
      close(fd);
      continue;
    }
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    Conn *c = &conns[fd];
    if (!c->in) c->in = malloc(c->room = 16384);
    c->have = c->need = 0, c->step = -1;
    epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &(struct epoll_event){.events = EPOLLIN, .data.fd = fd});
  }
}

static void take(int fd, uint64_t now) {
  Conn *c = &conns[fd];
  if (c->have + 1 >= c->room) c->in = realloc(c->in, c->room *= 2);
  if (!c->have) c->t_first = now;
  ssize_t n = recv(fd, c->in + c->have, c->room - c->have - 1, 0);
  if (n <= 0) {
    if (n == 0 || errno != EAGAIN) drop(fd);
    return;
  }
  c->have += (size_t)n;
  answer(fd);
}

int main(int argc, char **argv) {
  if (argc != 5 || (chunks = atoi(argv[1])) < 1 || chunks >= MAX_CHUNKS) return fprintf(stderr, "usage: sse_server NCHUNKS burst|paced GAP_US LOGFILE\n"), 2;
  paced = !strcmp(argv[2], "paced"), gap_ns = (uint64_t)atol(argv[3]) * 1000;
  arrivals = malloc(LOG_SIZE * sizeof *arrivals);
  render(0), render(1);
  signal(SIGPIPE, SIG_IGN), signal(SIGTERM, on_term);
  int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
  struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  socklen_t size = sizeof at;
  if (bind(listener, (void *)&at, size) || listen(listener, 8192) || getsockname(listener, (void *)&at, &size)) return perror("bind"), 1;
  printf("%d\n", ntohs(at.sin_port)), fflush(stdout);
  epoll_fd = epoll_create1(0);
  epoll_ctl(epoll_fd, EPOLL_CTL_ADD, listener, &(struct epoll_event){.events = EPOLLIN, .data.fd = listener});
  struct epoll_event ready[EVENTS];
  while (!quit) {
    uint64_t now = now_ns();
    int wait_ms = !timers ? 200 : heap[0].due <= now ? 0 : (int)((heap[0].due - now) / 1000000);
    int n = epoll_wait(epoll_fd, ready, EVENTS, wait_ms);
    now = now_ns();
    for (int i = 0; i < n; i++)
      if (ready[i].data.fd == listener) welcome(listener);
      else take(ready[i].data.fd, now);
    for (now = now_ns(); timers && heap[0].due <= now;) {
      Timer t = pop();
      if (conns[t.fd].step >= 0 && conns[t.fd].due == t.due) advance(t.fd);
    }
  }
  FILE *log = fopen(argv[4], "wb");
  if (log) fwrite(arrivals, sizeof *arrivals, arrived, log), fclose(log);
  return 0;
}
