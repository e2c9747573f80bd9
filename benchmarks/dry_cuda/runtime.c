/* A CUDA runtime without a GPU: memory is addresses, kernels compute nothing.
 *
 * Preloaded before torch's CUDA build, it lets a training run through torch's caching allocator, DeepSpeed and every
 * check of shapes and types that the host makes, with models of any size: nothing is ever written to the device, so its
 * pages take no room. Numbers are zeros; the allocator's account is exact.
 *
 * DRY_CUDA_GIB          memory of the device (79.11, an H100's)
 * DRY_CUDA_PROCESS_GIB  what a context and NCCL would take of it (1.5)
 * Functions that are not here, and those of cuBLAS, cuDNN and NCCL, are made by build.py: they do nothing and succeed.
 */
#define _GNU_SOURCE
#include <driver_types.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#define PAGE 4096ul
#define ALIGNMENT (2ul << 20)
#define HOST_COPY (64ul << 20) /* larger copies are left out: nobody looks at so many numbers */
#define OUT_OF_MEMORY 2

struct block {
    void *start, *mapped;
    size_t size, mapped_size;
    int on_host, is_range; /* a range of addresses has no memory of its own */
    struct block *next;
};

static struct block *blocks;
static size_t device_used;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static long next_handle = 1000;

static size_t bytes_from(const char *variable, double otherwise) {
    const char *gib = getenv(variable);
    return (size_t)((gib ? atof(gib) : otherwise) * (1ul << 30));
}
static size_t device_size(void) { return bytes_from("DRY_CUDA_GIB", 79.11); }
static size_t process_size(void) { return bytes_from("DRY_CUDA_PROCESS_GIB", 1.5); }

static void *handle(void) { return (void *)__sync_add_and_fetch(&next_handle, 1); }

static void remember(struct block made) {
    struct block *block = malloc(sizeof *block);
    *block = made;
    pthread_mutex_lock(&lock);
    block->next = blocks;
    blocks = block;
    if (!block->on_host && !block->is_range) device_used += block->size;
    pthread_mutex_unlock(&lock);
}

static struct block forget(void *start) {
    struct block found = {0}, **place;
    pthread_mutex_lock(&lock);
    for (place = &blocks; *place && (*place)->start != start; place = &(*place)->next) {}
    if (*place) {
        struct block *gone = *place;
        found = *gone;
        *place = gone->next;
        if (!gone->on_host && !gone->is_range) device_used -= gone->size;
        free(gone);
    }
    pthread_mutex_unlock(&lock);
    return found;
}

static int kind_of(const void *address) {
    int kind = cudaMemoryTypeUnregistered;
    pthread_mutex_lock(&lock);
    for (struct block *each = blocks; each; each = each->next)
        if ((char *)address >= (char *)each->start && (char *)address < (char *)each->start + each->size)
            kind = each->on_host ? cudaMemoryTypeHost : cudaMemoryTypeDevice;
    pthread_mutex_unlock(&lock);
    return kind;
}

/* Devices and versions: one H100, CUDA 13. */
int cudaGetDeviceCount(int *count) { *count = 1; return 0; }
int cudaGetDevice(int *device) { *device = 0; return 0; }
int cudaDriverGetVersion(int *version) { *version = 13000; return 0; }
int cudaRuntimeGetVersion(int *version) { *version = 13000; return 0; }
int cudaDeviceCanAccessPeer(int *can, int one, int other) { *can = 0; return 0; }
int cudaDeviceGetPCIBusId(char *text, int size, int device) { snprintf(text, size, "0000:00:01.0"); return 0; }
const char *cudaGetErrorName(int code) { return code == OUT_OF_MEMORY ? "cudaErrorMemoryAllocation" : "cudaErrorDry"; }
const char *cudaGetErrorString(int code) { return code == OUT_OF_MEMORY ? "out of memory" : "no GPU is here"; }

#undef cudaGetDeviceProperties
int cudaGetDeviceProperties(struct cudaDeviceProp *found, int device) {
    memset(found, 0, sizeof *found);
    strcpy(found->name, "none (dry run as an NVIDIA H100)");
    found->totalGlobalMem = device_size();
    found->major = 9;
    found->multiProcessorCount = 132;
    found->warpSize = 32;
    found->maxThreadsPerBlock = found->maxThreadsDim[0] = found->maxThreadsDim[1] = 1024;
    found->maxThreadsDim[2] = 64;
    found->maxThreadsPerMultiProcessor = 2048;
    found->maxGridSize[0] = 2147483647;
    found->maxGridSize[1] = found->maxGridSize[2] = 65535;
    found->sharedMemPerBlock = 49152;
    found->sharedMemPerBlockOptin = 232448;
    found->sharedMemPerMultiprocessor = 233472;
    found->regsPerBlock = found->regsPerMultiprocessor = 65536;
    found->l2CacheSize = 52428800;
    found->memPitch = 2147483647;
    found->totalConstMem = 65536;
    found->unifiedAddressing = found->concurrentKernels = 1;
    return 0;
}
int cudaGetDeviceProperties_v2(struct cudaDeviceProp *found, int device) { return cudaGetDeviceProperties(found, device); }

int cudaDeviceGetAttribute(int *value, int attribute, int device) {
    switch (attribute) {
    case cudaDevAttrComputeCapabilityMajor: *value = 9; break;
    case cudaDevAttrComputeCapabilityMinor: *value = 0; break;
    case cudaDevAttrMultiProcessorCount: *value = 132; break;
    case cudaDevAttrMaxThreadsPerBlock: *value = 1024; break;
    case cudaDevAttrMaxThreadsPerMultiProcessor: *value = 2048; break;
    case cudaDevAttrWarpSize: *value = 32; break;
    case cudaDevAttrMaxGridDimX: *value = 2147483647; break;
    case cudaDevAttrMaxSharedMemoryPerBlock: *value = 49152; break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = 231424; break;
    default: *value = 1;
    }
    return 0;
}

/* Memory. */
int cudaMalloc(void **start, size_t size) {
    size_t mapped_size = ((size + PAGE - 1) & ~(PAGE - 1)) + ALIGNMENT;
    *start = NULL;
    if (device_used + size + process_size() > device_size()) return OUT_OF_MEMORY;
    void *mapped = mmap(0, mapped_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (mapped == MAP_FAILED) return OUT_OF_MEMORY;
    *start = (void *)(((size_t)mapped + ALIGNMENT - 1) & ~(ALIGNMENT - 1));
    remember((struct block){*start, mapped, size, mapped_size, 0, 0, NULL});
    return 0;
}
int cudaMallocAsync(void **start, size_t size, void *stream) { return cudaMalloc(start, size); }
int cudaFree(void *start) {
    struct block gone = forget(start);
    if (gone.start) munmap(gone.mapped, gone.mapped_size);
    return 0;
}
int cudaFreeAsync(void *start, void *stream) { return cudaFree(start); }
int cudaHostAlloc(void **start, size_t size, unsigned flags) {
    if (posix_memalign(start, PAGE, size ? size : 1)) return OUT_OF_MEMORY;
    remember((struct block){*start, NULL, size, 0, 1, 0, NULL});
    return 0;
}
int cudaFreeHost(void *start) { forget(start); free(start); return 0; }
int cudaHostRegister(void *start, size_t size, unsigned flags) {
    remember((struct block){start, NULL, size, 0, 1, 0, NULL});
    return 0;
}
int cudaHostUnregister(void *start) { forget(start); return 0; }
int cudaMemGetInfo(size_t *available, size_t *all) {
    *all = device_size();
    *available = *all - device_used - process_size();
    return 0;
}
int cudaPointerGetAttributes(struct cudaPointerAttributes *found, const void *address) {
    memset(found, 0, sizeof *found);
    found->type = kind_of(address);
    found->devicePointer = found->hostPointer = (void *)address;
    return 0;
}
/* Nothing is ever written to the device, so what is read from it is zeros, the same in every run. */
int cudaMemcpyAsync(void *to, const void *from, size_t size, int kind, void *stream) {
    if (kind_of(to) == cudaMemoryTypeDevice || size > HOST_COPY) return 0;
    if (kind_of(from) == cudaMemoryTypeDevice) memset(to, 0, size);
    else memmove(to, from, size);
    return 0;
}
int cudaMemcpy(void *to, const void *from, size_t size, int kind) { return cudaMemcpyAsync(to, from, size, kind, 0); }
int cudaMemcpyPeerAsync(void *to, int device, const void *from, int other, size_t size, void *stream) { return 0; }
int cudaMemcpy2DAsync(void *to, size_t to_pitch, const void *from, size_t from_pitch, size_t width, size_t height,
                      int kind, void *stream) {
    for (size_t row = 0; row < height; row++)
        cudaMemcpyAsync((char *)to + row * to_pitch, (const char *)from + row * from_pitch, width, kind, stream);
    return 0;
}
int cudaGetSymbolAddress(void **address, const void *symbol) { *address = calloc(1, HOST_COPY); return 0; }
int cudaDeviceGetDefaultMemPool(void **pool, int device) { *pool = handle(); return 0; }
int cudaMemPoolGetAttribute(void *pool, int attribute, void *value) { *(size_t *)value = 0; return 0; }

/* Expandable segments: a range of addresses, and pieces of memory that are put there one after the other. */
static int reserve(size_t *start, size_t size, size_t alignment, size_t wish, unsigned long long flags) {
    void *mapped = mmap(0, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (mapped == MAP_FAILED) return OUT_OF_MEMORY;
    *start = (size_t)mapped;
    remember((struct block){mapped, mapped, size, size, 0, 1, NULL});
    return 0;
}
static int unreserve(size_t start, size_t size) {
    struct block gone = forget((void *)start);
    if (gone.start) munmap(gone.mapped, gone.mapped_size);
    return 0;
}
static int take(size_t *piece, size_t size, const void *properties, unsigned long long flags) {
    pthread_mutex_lock(&lock);
    int has_room = device_used + size + process_size() <= device_size();
    if (has_room) device_used += size;
    pthread_mutex_unlock(&lock);
    *piece = size; /* a piece is known by its size alone */
    return has_room ? 0 : OUT_OF_MEMORY;
}
static int give_back(size_t piece) {
    pthread_mutex_lock(&lock);
    device_used -= piece;
    pthread_mutex_unlock(&lock);
    return 0;
}
static int nothing(void) { return 0; }
int cudaGetDriverEntryPointByVersion(const char *name, void **found, unsigned version, unsigned long long flags, int *status) {
    *found = !strcmp(name, "cuMemAddressReserve") ? (void *)reserve
           : !strcmp(name, "cuMemAddressFree")    ? (void *)unreserve
           : !strcmp(name, "cuMemCreate")         ? (void *)take
           : !strcmp(name, "cuMemRelease")        ? (void *)give_back
                                                  : (void *)nothing;
    if (status) *status = 0;
    return 0;
}

/* Streams and events: everything is done at once. */
int cudaStreamCreate(void **stream) { *stream = handle(); return 0; }
int cudaStreamCreateWithFlags(void **stream, unsigned flags) { *stream = handle(); return 0; }
int cudaStreamCreateWithPriority(void **stream, unsigned flags, int priority) { *stream = handle(); return 0; }
int cudaStreamGetPriority(void *stream, int *priority) { *priority = 0; return 0; }
int cudaDeviceGetStreamPriorityRange(int *least, int *most) { *least = 0; *most = -5; return 0; }
int cudaStreamIsCapturing(void *stream, int *status) { *status = 0; return 0; }
int cudaStreamGetCaptureInfo(void *stream, int *status) { *status = 0; return 0; }
int cudaStreamAddCallback(void *stream, void (*call)(void *, int, void *), void *data, unsigned flags) {
    call(stream, 0, data);
    return 0;
}
int cudaLaunchHostFunc(void *stream, void (*call)(void *), void *data) { call(data); return 0; }
int cudaEventCreate(void **event) { *event = calloc(1, sizeof(struct timespec)); return 0; }
int cudaEventCreateWithFlags(void **event, unsigned flags) { return cudaEventCreate(event); }
int cudaEventDestroy(void *event) { free(event); return 0; }
int cudaEventRecord(void *event, void *stream) { clock_gettime(CLOCK_MONOTONIC, event); return 0; }
int cudaEventRecordWithFlags(void *event, void *stream, unsigned flags) { return cudaEventRecord(event, stream); }
int cudaEventElapsedTime(float *milliseconds, const struct timespec *from, const struct timespec *to) {
    *milliseconds = (to->tv_sec - from->tv_sec) * 1e3 + (to->tv_nsec - from->tv_nsec) * 1e-6;
    return 0;
}

/* Kernels. */
int __cudaGetKernel(void **kernel, const void *function) { *kernel = (void *)function; return 0; }
int cudaFuncGetAttributes(struct cudaFuncAttributes *found, const void *function) {
    memset(found, 0, sizeof *found);
    found->maxThreadsPerBlock = 1024;
    found->numRegs = 32;
    found->binaryVersion = found->ptxVersion = 90;
    found->maxDynamicSharedSizeBytes = 231424;
    return 0;
}
int cudaOccupancyMaxActiveBlocksPerMultiprocessor(int *count, const void *function, int threads, size_t shared) {
    *count = 2;
    return 0;
}
int cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *count, const void *function, int threads, size_t shared,
                                                           unsigned flags) {
    *count = 2;
    return 0;
}

/* Libraries whose answers are looked at. */
int cublasLtMatmulAlgoGetHeuristic(void *lt, void *operation, void *a, void *b, void *c, void *d, void *preference,
                                   int wanted, void *results, int *found) {
    memset(results, 0, 64);
    *found = 1;
    return 0;
}
size_t cublasLtGetVersion(void) { return 130000; }
int cublasGetMathMode(void *blas, int *mode) { *mode = 0; return 0; }
int cublasGetPointerMode_v2(void *blas, int *mode) { *mode = 0; return 0; }
size_t cudnnGetVersion(void) { return 91900; }
size_t cudnnGetCudartVersion(void) { return 13000; }
int ncclGetVersion(int *version) { *version = 22800; return 0; }
int ncclCommInitRankConfig(void **group, int size, int id[32], int rank, void *settings) { *group = handle(); return 0; }
int ncclCommSplit(void *group, int color, int key, void **made, void *settings) { *made = handle(); return 0; }
int ncclCommGetAsyncError(void *group, int *error) { *error = 0; return 0; }
