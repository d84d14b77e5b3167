/* A stand-in for libcuda.so.1 that behaves: memory of the "GPU" is host memory that it remembers, and copies wait in a queue until
   somebody synchronises. A host pointer passed as a device pointer, a copy past the end, a missing context or a second free is an
   error code, as with the real one. Signatures are those of the CUDA Driver API. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { SUCCESS = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NO_DEVICE = 100, INVALID_CONTEXT = 201, INVALID_HANDLE = 400 };
enum { BLOCKS = 4096, WAITING = 4096 };

typedef struct { char *start; size_t size; int host; } block;
typedef struct { char *to; const char *from; size_t size; } copy;

static block blocks[BLOCKS];
static copy waiting[WAITING];
static size_t waiting_count, devices = 1, budget = (size_t)-1;
static int context, retained;
static _Thread_local void *current;

/* For tests. */
void fake_set_devices(size_t count) { devices = count; }
void fake_set_memory(size_t bytes) { budget = bytes; }
int fake_contexts(void) { return retained; }
size_t fake_allocations(void) { size_t n = 0; for (int i = 0; i < BLOCKS; i++) n += blocks[i].start != 0; return n; }
/* What a kernel in the stream would see: everything queued before it is done. */
void fake_drain(void) {
  for (size_t i = 0; i < waiting_count; i++) memcpy(waiting[i].to, waiting[i].from, waiting[i].size);
  waiting_count = 0;
}
int fake_is_device(uint64_t pointer, size_t size) {
  char *p = (char *)pointer;
  for (int i = 0; i < BLOCKS; i++)
    if (blocks[i].start && !blocks[i].host && p >= blocks[i].start && p + size <= blocks[i].start + blocks[i].size) return 1;
  return 0;
}

static int take(size_t size, int host, char **out) {
  if (current != &context) return INVALID_CONTEXT;
  if (!size) return INVALID_VALUE;
  if (size > budget) return OUT_OF_MEMORY;
  for (int i = 0; i < BLOCKS; i++)
    if (!blocks[i].start) {
      blocks[i] = (block){malloc(size), size, host};
      memset(blocks[i].start, 0xA5, size);
      *out = blocks[i].start;
      return SUCCESS;
    }
  return OUT_OF_MEMORY;
}
static int give(char *pointer, int host) {
  if (current != &context) return INVALID_CONTEXT;
  for (int i = 0; i < BLOCKS; i++)
    if (blocks[i].start == pointer && pointer && blocks[i].host == host) {
      fake_drain();
      free(blocks[i].start);
      blocks[i].start = 0;
      return SUCCESS;
    }
  return INVALID_VALUE;
}
static int queue(char *to, const char *from, size_t size, void *stream) {
  if (current != &context) return INVALID_CONTEXT;
  if (!stream) return INVALID_HANDLE;
  if (waiting_count == WAITING) return OUT_OF_MEMORY;
  waiting[waiting_count++] = (copy){to, from, size};
  return SUCCESS;
}

int cuInit(unsigned flags) { return flags ? INVALID_VALUE : devices ? SUCCESS : NO_DEVICE; }
int cuGetErrorName(int code, const char **name) {
  *name = code == OUT_OF_MEMORY ? "CUDA_ERROR_OUT_OF_MEMORY" : code == INVALID_CONTEXT ? "CUDA_ERROR_INVALID_CONTEXT"
        : code == NO_DEVICE ? "CUDA_ERROR_NO_DEVICE" : code == INVALID_VALUE ? "CUDA_ERROR_INVALID_VALUE" : 0;
  return *name ? SUCCESS : INVALID_VALUE;
}
int cuDriverGetVersion(int *version) { *version = 12060; return SUCCESS; }
int cuDeviceGetCount(int *count) { *count = (int)devices; return SUCCESS; }
int cuDeviceGet(int *device, int ordinal) { *device = ordinal; return ordinal < (int)devices ? SUCCESS : INVALID_VALUE; }
int cuDeviceGetName(char *name, int length, int device) { (void)device; strncpy(name, "Stand-in GPU", length); return SUCCESS; }
int cuDeviceGetAttribute(int *value, int which, int device) {
  (void)device;
  *value = which == 75 ? 8 : which == 76 ? 7 : -1;
  return *value < 0 ? INVALID_VALUE : SUCCESS;
}
int cuDevicePrimaryCtxRetain(void **out, int device) { (void)device; retained++; *out = &context; return SUCCESS; }
int cuDevicePrimaryCtxRelease_v2(int device) { (void)device; retained--; return SUCCESS; }
int cuCtxSetCurrent(void *wanted) { current = wanted; return wanted == &context ? SUCCESS : INVALID_CONTEXT; }
int cuStreamCreate(void **stream, unsigned flags) { (void)flags; return take(1, 2, (char **)stream); }
int cuStreamSynchronize(void *stream) { if (!stream) return INVALID_HANDLE; fake_drain(); return SUCCESS; }
int cuStreamDestroy_v2(void *stream) { return give(stream, 2); }
int cuMemAlloc_v2(uint64_t *pointer, size_t size) { return take(size, 0, (char **)pointer); }
int cuMemFree_v2(uint64_t pointer) { return give((char *)pointer, 0); }
int cuMemHostAlloc(void **pointer, size_t size, unsigned flags) { (void)flags; return take(size, 1, (char **)pointer); }
int cuMemFreeHost(void *pointer) { return give(pointer, 1); }
int cuMemcpyHtoDAsync_v2(uint64_t to, const void *from, size_t size, void *stream) {
  if (!fake_is_device(to, size) || fake_is_device((uint64_t)from, 1)) return INVALID_VALUE;
  return queue((char *)to, from, size, stream);
}
int cuMemcpyDtoHAsync_v2(void *to, uint64_t from, size_t size, void *stream) {
  if (!fake_is_device(from, size) || fake_is_device((uint64_t)to, 1)) return INVALID_VALUE;
  return queue(to, (const char *)from, size, stream);
}
