/* libfaketime knows nothing of C11's timed wait, which librdkafka uses: what is told in the wrong clock it would wait for
   in the right one. Stands before libfaketime (tests/faults/deployment.py). */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <sys/syscall.h>
#include <threads.h>
#include <time.h>
#include <unistd.h>

#define SECOND_NS 1000000000LL

int cnd_timedwait(cnd_t *condition, mtx_t *mutex, const struct timespec *until) {
  static int (*wait)(cnd_t *, mtx_t *, const struct timespec *);
  struct timespec believed, real;
  if (!wait) wait = dlsym(RTLD_NEXT, "cnd_timedwait");
  clock_gettime(CLOCK_REALTIME, &believed);
  syscall(SYS_clock_gettime, CLOCK_REALTIME, &real);
  long long then_ns = (until->tv_sec - believed.tv_sec + real.tv_sec) * SECOND_NS;
  then_ns += until->tv_nsec - believed.tv_nsec + real.tv_nsec;
  struct timespec then = {then_ns / SECOND_NS, then_ns % SECOND_NS};
  return wait(condition, mutex, &then);
}
