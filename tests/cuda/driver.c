// Stands in for CUDA's driver, cuBLAS and cuRAND, see tests/cuda/run. Nothing is computed: it hands out addresses,
// refuses what a real one refuses, and counts. What is read from it is zero.
//
// HONE_STAND_IN_MEMORY: bytes of the device, 80 GiB without.
// HONE_STAND_IN_LOG: a file to which a line of JSON is written whenever the free memory is asked for: what was
//                    counted since the last line.

#include <pthread.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef int CUresult;
typedef uint64_t CUdeviceptr;

enum { OK = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NOT_FOUND = 500 };
enum { CUBLAS_OK = 0, CUBLAS_NOT_INITIALIZED = 1, CUBLAS_INVALID_VALUE = 7 };

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

// Memory: addresses count up and are never used twice.

typedef struct Block {
    CUdeviceptr address;
    size_t bytes;
    struct Block *next;
} Block;

enum { BUCKETS = 1 << 16 };
static Block *blocks[BUCKETS];
static CUdeviceptr next_address = (CUdeviceptr)1 << 40;
static size_t live, peak;

static size_t capacity(void) {
    const char *text = getenv("HONE_STAND_IN_MEMORY");
    return text ? strtoull(text, NULL, 10) : (size_t)80 << 30;
}

static CUresult allocate(CUdeviceptr *address, size_t bytes) {
    if (bytes == 0) return INVALID_VALUE;
    size_t rounded = (bytes + 511) / 512 * 512;
    pthread_mutex_lock(&lock);
    if (live + rounded > capacity()) {
        pthread_mutex_unlock(&lock);
        return OUT_OF_MEMORY;
    }
    Block *block = malloc(sizeof *block);
    *block = (Block){next_address, rounded, blocks[next_address / 512 % BUCKETS]};
    blocks[next_address / 512 % BUCKETS] = block;
    *address = next_address;
    next_address += rounded;
    live += rounded;
    if (live > peak) peak = live;
    pthread_mutex_unlock(&lock);
    return OK;
}

static CUresult release(CUdeviceptr address) {
    pthread_mutex_lock(&lock);
    Block **at = &blocks[address / 512 % BUCKETS];
    while (*at && (*at)->address != address) at = &(*at)->next;
    Block *block = *at;
    if (block) {
        *at = block->next;
        live -= block->bytes;
        free(block);
    }
    pthread_mutex_unlock(&lock);
    return block ? OK : INVALID_VALUE;
}

// Counts, by name.

typedef struct {
    char name[80];
    uint64_t count, amount;
} Counter;

static Counter counters[512];
static int used;

// Counts one `name` of so many bytes, elements or operations.
static void count(const char *name, uint64_t amount) {
    pthread_mutex_lock(&lock);
    int at = 0;
    while (at < used && strcmp(counters[at].name, name)) at++;
    if (at == used) {
        if (used == (int)(sizeof counters / sizeof *counters)) abort();
        snprintf(counters[used++].name, sizeof counters[0].name, "%s", name);
    }
    counters[at].count++;
    counters[at].amount += amount;
    pthread_mutex_unlock(&lock);
}

static void write_counts(void) {
    const char *path = getenv("HONE_STAND_IN_LOG");
    FILE *log = path ? fopen(path, "a") : NULL;
    pthread_mutex_lock(&lock);
    if (log) {
        fprintf(log, "{\"live\": %zu, \"peak\": %zu, \"counts\": {", live, peak);
        for (int at = 0; at < used; at++) {
            fprintf(log, "%s\"%s\": [%llu, %llu]", at ? ", " : "", counters[at].name,
                    (unsigned long long)counters[at].count, (unsigned long long)counters[at].amount);
        }
        fprintf(log, "}}\n");
        fclose(log);
    }
    used = 0;
    memset(counters, 0, sizeof counters);
    peak = live;
    pthread_mutex_unlock(&lock);
}

// The driver.

CUresult cuInit(unsigned flags) { (void)flags; return OK; }
CUresult cuDeviceGet(int *device, int ordinal) {
    *device = ordinal;
    return ordinal == 0 ? OK : 101;
}
CUresult cuDeviceGetCount(int *devices) { *devices = 1; return OK; }
CUresult cuDeviceGetAttribute(int *value, int attribute, int device) {
    (void)device;
    // Memory pools; compute capability 9.0.
    *value = attribute == 115 ? 1 : attribute == 75 ? 9 : 0;
    return OK;
}
CUresult cuDevicePrimaryCtxRetain(void **context, int device) {
    (void)device;
    *context = &live;
    count("context", 0);
    return OK;
}
CUresult cuDevicePrimaryCtxRelease_v2(int device) { (void)device; return OK; }
CUresult cuCtxSetCurrent(void *context) { (void)context; return OK; }
CUresult cuCtxGetCurrent(void **context) { *context = &live; return OK; }
CUresult cuCtxSynchronize(void) { count("synchronize", 0); return OK; }
CUresult cuMemGetInfo_v2(size_t *free, size_t *total) {
    write_counts();
    *total = capacity();
    *free = *total - live;
    return OK;
}
CUresult cuMemAllocAsync(CUdeviceptr *address, size_t bytes, void *stream) {
    (void)stream;
    CUresult made = allocate(address, bytes);
    if (made == OK) count("allocate", bytes);
    return made;
}
CUresult cuMemAlloc_v2(CUdeviceptr *address, size_t bytes) { return cuMemAllocAsync(address, bytes, NULL); }
CUresult cuMemFreeAsync(CUdeviceptr address, void *stream) { (void)stream; return release(address); }
CUresult cuMemFree_v2(CUdeviceptr address) { return release(address); }
CUresult cuMemsetD8Async(CUdeviceptr to, unsigned char byte, size_t bytes, void *stream) {
    (void)to, (void)byte, (void)stream;
    count("memset", bytes);
    return OK;
}
CUresult cuMemcpyHtoDAsync_v2(CUdeviceptr to, const void *from, size_t bytes, void *stream) {
    (void)to, (void)from, (void)stream;
    count(bytes <= 512 ? "up (at most 512 bytes)" : "up", bytes);
    return OK;
}
CUresult cuMemcpyDtoHAsync_v2(void *to, CUdeviceptr from, size_t bytes, void *stream) {
    (void)from, (void)stream;
    memset(to, 0, bytes);
    count("down", bytes);
    return OK;
}
CUresult cuMemcpyDtoDAsync_v2(CUdeviceptr to, CUdeviceptr from, size_t bytes, void *stream) {
    (void)to, (void)from, (void)stream;
    count("copy on the device", bytes);
    return OK;
}
CUresult cuStreamSynchronize(void *stream) { (void)stream; count("synchronize", 0); return OK; }
CUresult cuStreamWaitEvent(void *stream, void *event, unsigned flags) {
    (void)stream, (void)event, (void)flags;
    count("wait for an event", 0);
    return OK;
}
CUresult cuEventCreate(void **event, unsigned flags) {
    (void)flags;
    *event = &live;
    count("event", 0);
    return OK;
}
CUresult cuEventDestroy_v2(void *event) { (void)event; return OK; }
CUresult cuEventRecord(void *event, void *stream) { (void)event, (void)stream; return OK; }
CUresult cuStreamIsCapturing(void *stream, int *status) { (void)stream; *status = 0; return OK; }

static const char *name_of(CUresult error) {
    switch (error) {
        case OK: return "CUDA_SUCCESS";
        case INVALID_VALUE: return "CUDA_ERROR_INVALID_VALUE";
        case OUT_OF_MEMORY: return "CUDA_ERROR_OUT_OF_MEMORY";
        case 101: return "CUDA_ERROR_INVALID_DEVICE";
        case NOT_FOUND: return "CUDA_ERROR_NOT_FOUND";
        default: return "CUDA_ERROR_UNKNOWN";
    }
}
CUresult cuGetErrorName(CUresult error, const char **name) { *name = name_of(error); return OK; }
CUresult cuGetErrorString(CUresult error, const char **text) { *text = name_of(error); return OK; }

// A module is the text that the compiler's stand-in made: `kernel NAME`, one a line.
CUresult cuModuleLoadData(void **module, const void *image) {
    *module = strdup(image);
    count("module", 0);
    return OK;
}
CUresult cuModuleUnload(void *module) { (void)module; return OK; }
CUresult cuModuleGetFunction(void **function, void *module, const char *name) {
    size_t length = strlen(name);
    for (char *at = module; (at = strstr(at, "kernel ")); at += 7) {
        if (!strncmp(at + 7, name, length) && (at[7 + length] == '\n' || at[7 + length] == '\0')) {
            *function = at + 7;
            return OK;
        }
    }
    fprintf(stderr, "stand-in: there is no kernel %s\n", name);
    return NOT_FOUND;
}

static int starts(const char *name, const char *with) { return !strncmp(name, with, strlen(with)); }

// Elements that a kernel reads or makes, from its launch.
static uint64_t elements(const char *name, unsigned grid, void **params) {
    if (starts(name, "softmax")) return (uint64_t)grid * *(int32_t *)params[2];
    if (starts(name, "rmsnorm")) return (uint64_t)grid * *(int32_t *)params[3];
    if (starts(name, "rope_thd")) {
        uint64_t all = 1;
        for (int at = 4; at < 8; at++) all *= *(uint32_t *)params[at];
        return all;
    }
    if (starts(name, "copy2d")) return (uint64_t) * (uint32_t *)params[2] * *(uint32_t *)params[3];
    // ids, input, output, left, source, destination, right
    if (starts(name, "sa_")) {
        return *(size_t *)params[3] * *(size_t *)params[4] * *(size_t *)params[6];
    }
    // ids, number of ids, input, output, left, source, destination, right
    if (starts(name, "ia_")) {
        return *(size_t *)params[4] * *(size_t *)params[1] * *(size_t *)params[7];
    }
    return *(size_t *)params[0];
}

CUresult cuLaunchKernel(void *function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,
                        unsigned block_y, unsigned block_z, unsigned shared, void *stream, void **params,
                        void **extra) {
    (void)shared, (void)extra;
    if (!grid_x || !grid_y || !grid_z || grid_x > INT32_MAX || block_x * block_y * block_z > 1024) {
        return INVALID_VALUE;
    }
    char name[64];
    snprintf(name, sizeof name, "%.*s", (int)strcspn(function, "\n"), (char *)function);
    // A binary kernel with strides has an operand that is broadcast, mostly a small one.
    char key[80];
    int is_binary = starts(name, "b") || starts(name, "eq") || starts(name, "ge") || starts(name, "lt");
    int has_strides = is_binary && *(CUdeviceptr *)params[2] != 0;
    snprintf(key, sizeof key, "%s%s", name, has_strides ? " broadcast" : "");
    count(key, elements(name, grid_x, params));
    if (stream != (void *)2) count("launch on another stream", 0);
    static pthread_t owner;
    static int has_owner;
    if (!has_owner) owner = pthread_self(), has_owner = 1;
    if (!pthread_equal(owner, pthread_self())) count("launch by another thread", 0);
    return OK;
}

// cuBLAS.

int cublasCreate_v2(void **handle) {
    // What a real one needs of the device at once.
    CUdeviceptr workspace;
    if (allocate(&workspace, 8 << 20) != OK) return CUBLAS_NOT_INITIALIZED;
    *handle = (void *)workspace;
    return CUBLAS_OK;
}
int cublasDestroy_v2(void *handle) { release((CUdeviceptr)handle); return CUBLAS_OK; }
int cublasSetStream_v2(void *handle, void *stream) { (void)handle, (void)stream; return CUBLAS_OK; }
int cublasGemmStridedBatchedEx(void *handle, int trans_a, int trans_b, int m, int n, int k, const void *alpha,
                               const void *a, int type_a, int lda, long long stride_a, const void *b, int type_b,
                               int ldb, long long stride_b, const void *beta, void *c, int type_c, int ldc,
                               long long stride_c, int batch, int compute, int algorithm) {
    (void)handle, (void)alpha, (void)stride_a, (void)stride_b, (void)beta, (void)stride_c, (void)algorithm;
    if (!a || !b || !c || m <= 0 || n <= 0 || k <= 0 || batch <= 0 || type_a != type_b || type_a != type_c) {
        return CUBLAS_INVALID_VALUE;
    }
    if (lda < (trans_a ? k : m) || ldb < (trans_b ? n : k) || ldc < m) return CUBLAS_INVALID_VALUE;
    // CUDA_R_32F is 0, CUDA_R_16BF 14; CUBLAS_COMPUTE_32F 68, with TF32 77.
    const char *name = type_a == 14 ? "gemm bf16" : compute == 77 ? "gemm tf32" : "gemm f32";
    uint64_t bytes = (uint64_t)batch * ((uint64_t)m * k + (uint64_t)k * n + (uint64_t)m * n);
    count(name, 2ull * batch * m * n * k);
    char moved[64];
    snprintf(moved, sizeof moved, "%s bytes", name);
    count(moved, bytes * (type_a == 14 ? 2 : 4));
    return CUBLAS_OK;
}

// cuRAND, of which candle makes a generator and hone nothing.

int curandCreateGenerator(void **generator, int type) { (void)type; *generator = &live; return 0; }
int curandSetPseudoRandomGeneratorSeed(void *generator, unsigned long long seed) {
    (void)generator, (void)seed;
    return 0;
}
int curandSetStream(void *generator, void *stream) { (void)generator, (void)stream; return 0; }
int curandDestroyGenerator(void *generator) { (void)generator; return 0; }
