/* Writes what a CUDA program does, as lines: every kernel, copy and call of the driver with its times.
 *
 * The driver loads this library into a program that is started with CUDA_INJECTION64_PATH=trace.so, and calls
 * InitializeInjection. HONE_TRACE_FILE names the file. Times are nanoseconds of CUPTI's clock; the first line pairs
 * it with the clock of the system (CLOCK_REALTIME).
 *
 *   T cupti realtime        K start end name        C start end kind bytes        S start end bytes
 *   D start end name (a call of the driver, on the host)                          E sentence
 */
#include <cupti.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#define BUFFER_BYTES (8u << 20)

static FILE *file;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static int fails(CUptiResult result, const char *what)
{
    const char *reason = "unknown";
    if (result == CUPTI_SUCCESS)
        return 0;
    cuptiGetResultString(result, &reason);
    fprintf(file, "E %s: %s\n", what, reason);
    fflush(file);
    return 1;
}

static void CUPTIAPI give_buffer(uint8_t **buffer, size_t *size, size_t *most_records)
{
    *buffer = aligned_alloc(8, BUFFER_BYTES);
    *size = *buffer ? BUFFER_BYTES : 0;
    *most_records = 0;
}

static void write_record(const CUpti_Activity *record)
{
    switch (record->kind) {
    case CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL: {
        const CUpti_ActivityKernel10 *kernel = (const void *)record;
        fprintf(file, "K %" PRIu64 " %" PRIu64 " %s\n", kernel->start, kernel->end, kernel->name);
        break;
    }
    case CUPTI_ACTIVITY_KIND_MEMCPY: {
        const CUpti_ActivityMemcpy6 *copy = (const void *)record;
        fprintf(file, "C %" PRIu64 " %" PRIu64 " %u %" PRIu64 "\n", copy->start, copy->end,
                (unsigned)copy->copyKind, copy->bytes);
        break;
    }
    case CUPTI_ACTIVITY_KIND_MEMSET: {
        const CUpti_ActivityMemset4 *set = (const void *)record;
        fprintf(file, "S %" PRIu64 " %" PRIu64 " %" PRIu64 "\n", set->start, set->end, set->bytes);
        break;
    }
    case CUPTI_ACTIVITY_KIND_DRIVER: {
        const CUpti_ActivityAPI *call = (const void *)record;
        const char *name = "unknown";
        cuptiGetCallbackName(CUPTI_CB_DOMAIN_DRIVER_API, call->cbid, &name);
        fprintf(file, "D %" PRIu64 " %" PRIu64 " %s\n", call->start, call->end, name);
        break;
    }
    default:
        break;
    }
}

static void CUPTIAPI take_buffer(CUcontext context, uint32_t stream, uint8_t *buffer, size_t size, size_t valid)
{
    CUpti_Activity *record = NULL;
    size_t dropped = 0;
    (void)size;
    pthread_mutex_lock(&lock);
    while (cuptiActivityGetNextRecord(buffer, valid, &record) == CUPTI_SUCCESS)
        write_record(record);
    if (cuptiActivityGetNumDroppedRecords(context, stream, &dropped) == CUPTI_SUCCESS && dropped > 0)
        fprintf(file, "E %zu records were dropped\n", dropped);
    fflush(file);
    pthread_mutex_unlock(&lock);
    free(buffer);
}

static void finish(void)
{
    cuptiActivityFlushAll(CUPTI_ACTIVITY_FLAG_FLUSH_FORCED);
}

int InitializeInjection(void)
{
    static const CUpti_ActivityKind kinds[] = {
        CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL,
        CUPTI_ACTIVITY_KIND_MEMCPY,
        CUPTI_ACTIVITY_KIND_MEMSET,
        CUPTI_ACTIVITY_KIND_DRIVER,
    };
    const char *path = getenv("HONE_TRACE_FILE");
    struct timespec now;
    uint64_t device_clock = 0;
    size_t index;
    if (path == NULL || file != NULL)
        return 1;
    file = fopen(path, "w");
    if (file == NULL)
        return 1;
    if (fails(cuptiActivityRegisterCallbacks(give_buffer, take_buffer), "registering the buffers"))
        return 1;
    for (index = 0; index < sizeof kinds / sizeof kinds[0]; index++)
        if (fails(cuptiActivityEnable(kinds[index]), "enabling a kind of records"))
            return 1;
    cuptiGetTimestamp(&device_clock);
    clock_gettime(CLOCK_REALTIME, &now);
    fprintf(file, "T %" PRIu64 " %" PRIu64 "\n", device_clock, (uint64_t)now.tv_sec * 1000000000u + now.tv_nsec);
    fflush(file);
    atexit(finish);
    return 1;
}
