/* Open-loop HTTP load: one event per request, at fixed instants, whatever the answers do.
 *
 *   loadgen HOST PORT RATE CONNECTIONS LINES_FILE ACK_FILE [KEY]
 *
 * LINES_FILE holds one event a line, with 13 digits of `@` where the send time in epoch milliseconds goes.
 * Request i is due at t0 + i / RATE; it takes the longest idle connection, and waits for one where none is idle, its
 * due time unchanged (no coordinated omission). ACK_FILE gets int64 microseconds from due time to answer for each request,
 * -1 where none came. Standard output: one JSON line with t0 on CLOCK_MONOTONIC, which other processes share.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define MARK "@@@@@@@@@@@@@"
#define MARK_LENGTH 13
#define REQUEST_BYTES 8192
#define ANSWER_BYTES 4096

struct connection {
    int fd;
    long request;          /* being answered, -1 while idle */
    char answer[ANSWER_BYTES];
    int got;
};

static int64_t now_ns(clockid_t clock)
{
    struct timespec t;
    clock_gettime(clock, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static void die(const char *what)
{
    perror(what);
    exit(1);
}

/* Bytes of the whole answer in `buffer`, 0 while incomplete. Answers carry content-length. */
static int answer_bytes(const char *buffer, int got)
{
    const char *end = memmem(buffer, got, "\r\n\r\n", 4);
    if (!end) return 0;
    const char *field = strcasestr(buffer, "content-length:");
    int body = field && field < end ? atoi(field + 15) : 0;
    int whole = (int)(end - buffer) + 4 + body;
    return got >= whole ? whole : 0;
}

int main(int argc, char **argv)
{
    if (argc < 7) {
        fprintf(stderr, "usage: loadgen HOST PORT RATE CONNECTIONS LINES_FILE ACK_FILE [KEY]\n");
        return 2;
    }
    double rate = atof(argv[3]);
    int connections = atoi(argv[4]);
    int file = open(argv[5], O_RDONLY);
    struct stat about;
    if (file < 0 || fstat(file, &about) < 0) die(argv[5]);
    char *lines = mmap(NULL, about.st_size, PROT_READ, MAP_PRIVATE, file, 0);
    if (lines == MAP_FAILED) die("mmap");
    long count = 0;
    for (off_t i = 0; i < about.st_size; i++) count += lines[i] == '\n';
    long *starts = malloc((count + 1) * sizeof *starts);
    int64_t *acks = malloc(count * sizeof *acks);
    long n = 0;
    starts[0] = 0;
    for (off_t i = 0; i < about.st_size; i++)
        if (lines[i] == '\n') starts[++n] = i + 1;
    for (long i = 0; i < count; i++) acks[i] = -1;

    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(atoi(argv[2]))};
    if (inet_pton(AF_INET, argv[1], &to.sin_addr) != 1) die("host must be an IPv4 address");
    int poll = epoll_create1(0);
    struct connection *all = calloc(connections, sizeof *all);
    int *idle = malloc(connections * sizeof *idle);
    int idle_first = 0, idle_count = 0;
    for (int i = 0; i < connections; i++) {
        int one = 1, fd = socket(AF_INET, SOCK_STREAM, 0);
        if (fd < 0 || connect(fd, (struct sockaddr *)&to, sizeof to) < 0) die("connect");
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        fcntl(fd, F_SETFL, O_NONBLOCK);
        all[i] = (struct connection){.fd = fd, .request = -1};
        struct epoll_event wanted = {.events = EPOLLIN, .data.u32 = i};
        epoll_ctl(poll, EPOLL_CTL_ADD, fd, &wanted);
        idle[idle_count++] = i;
    }
    char key[512] = "";
    if (argc > 7) snprintf(key, sizeof key, "authorization: Bearer %s\r\n", argv[7]);

    long next = 0, answered = 0, refused = 0;
    int64_t worst_late_ns = 0;
    int64_t t0 = now_ns(CLOCK_MONOTONIC) + 50000000;
    int64_t give_up = t0 + (int64_t)(count / rate * 1e9) + 30000000000;
    while (answered < count) {
        int64_t now = now_ns(CLOCK_MONOTONIC);
        if (now > give_up) break;
        while (next < count && idle_count > 0) {
            int64_t due = t0 + (int64_t)(next * 1e9 / rate);
            if (due > now) break;
            if (now - due > worst_late_ns) worst_late_ns = now - due;
            int which = idle[idle_first];
            idle_first = (idle_first + 1) % connections;
            idle_count--;
            long length = starts[next + 1] - starts[next] - 1;
            char request[REQUEST_BYTES];
            int head = snprintf(request, sizeof request,
                                "POST /v1/events HTTP/1.1\r\nhost: engine\r\n%scontent-type: application/json\r\n"
                                "content-length: %ld\r\n\r\n", key, length);
            if (head + length > REQUEST_BYTES) { fprintf(stderr, "line %ld is too long\n", next); return 1; }
            memcpy(request + head, lines + starts[next], length);
            char *mark = memmem(request + head, length, MARK, MARK_LENGTH);
            if (mark) {
                char digits[32];
                snprintf(digits, sizeof digits, "%013lld", (long long)(now_ns(CLOCK_REALTIME) / 1000000));
                memcpy(mark, digits, MARK_LENGTH);
            }
            if (write(all[which].fd, request, head + length) != head + length) die("write");
            all[which].request = next++;
            now = now_ns(CLOCK_MONOTONIC);
        }
        int wait_ms = 0;
        if (next < count && idle_count > 0) {
            int64_t left = t0 + (int64_t)(next * 1e9 / rate) - now_ns(CLOCK_MONOTONIC);
            if (left > 1500000) wait_ms = (int)(left / 1000000) - 1;
            else if (left > 60000) { struct timespec nap = {0, left - 50000}; nanosleep(&nap, NULL); }
        } else {
            wait_ms = 100;
        }
        struct epoll_event ready[64];
        int found = epoll_wait(poll, ready, 64, wait_ms);
        now = now_ns(CLOCK_MONOTONIC);
        for (int i = 0; i < found; i++) {
            struct connection *one = &all[ready[i].data.u32];
            ssize_t got = read(one->fd, one->answer + one->got, ANSWER_BYTES - 1 - one->got);
            if (got <= 0) {
                if (got < 0 && errno == EAGAIN) continue;
                fprintf(stderr, "the service closed a connection\n");
                return 1;
            }
            one->got += (int)got;
            one->answer[one->got] = 0;
            int whole = answer_bytes(one->answer, one->got);
            if (!whole || one->request < 0) continue;
            if (memcmp(one->answer + 9, "202", 3) == 0)
                acks[one->request] = (now - t0 - (int64_t)(one->request * 1e9 / rate)) / 1000;
            else
                refused++;
            answered++;
            one->request = -1;
            one->got = 0;
            idle[(idle_first + idle_count++) % connections] = (int)ready[i].data.u32;
        }
    }
    FILE *out = fopen(argv[6], "wb");
    if (!out || fwrite(acks, sizeof *acks, count, out) != (size_t)count) die(argv[6]);
    fclose(out);
    printf("{\"generator\":\"c\",\"t0_ns\":%lld,\"sent\":%ld,\"answered\":%ld,\"refused\":%ld,\"worst_late_us\":%lld}\n",
           (long long)t0, next, answered, refused, (long long)(worst_late_ns / 1000));
    return 0;
}
