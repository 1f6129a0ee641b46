/* A stand-in for libnvidia-ml.so.1: one table of int64 slots in a mapped file (FAKE_NVML) is the card.
 * Tests write what the card shows; the setters of limits and clocks write back. Built by tests with gcc. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

enum {
    INIT_RETURN, COUNT, ENERGY_MJ, ENERGY_RETURN, ENERGY_HANG_US, INSTANT_MW, HBM_MW, MODULE_MW, FIELD_AGE_US,
    SM_MHZ, MEM_MHZ, TEMP_C, THROTTLE, MIG, ARCHITECTURE, LIMIT_MW, LIMIT_MIN_MW, LIMIT_MAX_MW, LIMIT_DEFAULT_MW,
    OUT_OF_BAND_MW, MAY_SET, LOCK_MIN_MHZ, LOCK_MAX_MHZ, SET_CALLS, RING_RETURN, RING_MS, MAX_SM_MHZ, SLOTS
};
enum { OK = 0, INVALID = 2, NOT_SUPPORTED = 3, NO_PERMISSION = 4, NOT_FOUND = 6, INSUFFICIENT = 7, UNKNOWN = 999 };

static volatile int64_t *card;

static int map_card(void) {
    const char *path = getenv("FAKE_NVML");
    int fd = path ? open(path, O_RDWR) : -1;
    if (fd < 0) return UNKNOWN;
    card = mmap(NULL, SLOTS * 8, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    return card == MAP_FAILED ? UNKNOWN : OK;
}

static int64_t wall_us(void) {
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    return (int64_t)t.tv_sec * 1000000 + t.tv_nsec / 1000;
}

int nvmlInitWithFlags(unsigned flags) { (void)flags; return card || map_card() == OK ? (int)card[INIT_RETURN] : UNKNOWN; }
int nvmlShutdown(void) { return OK; }
const char *nvmlErrorString(int code) {
    switch (code) {
    case NOT_SUPPORTED: return "Not Supported";
    case NO_PERMISSION: return "Insufficient Permissions";
    case 9: return "Driver Not Loaded";
    case 15: return "GPU is lost";
    default: return "Unknown Error";
    }
}
int nvmlDeviceGetCount_v2(unsigned *count) { *count = (unsigned)card[COUNT]; return OK; }
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **handle) {
    if (index >= (unsigned)card[COUNT]) return INVALID;
    *handle = (void *)(uintptr_t)(index + 1);
    return OK;
}
int nvmlDeviceGetHandleByUUID(const char *uuid, void **handle) {
    if (strncmp(uuid, "GPU-fake-", 9)) return NOT_FOUND;
    *handle = (void *)(uintptr_t)(uuid[9] - '0' + 1);
    return OK;
}
int nvmlDeviceGetUUID(void *handle, char *out, unsigned length) {
    strncpy(out, (uintptr_t)handle == 1 ? "GPU-fake-0" : "GPU-fake-1", length);
    return OK;
}
int nvmlDeviceGetName(void *handle, char *out, unsigned length) {
    (void)handle;
    strncpy(out, "Fake H100", length);
    return OK;
}
int nvmlDeviceGetMigMode(void *handle, unsigned *now, unsigned *next) {
    (void)handle;
    *now = *next = (unsigned)card[MIG];
    return OK;
}
int nvmlDeviceGetArchitecture(void *handle, unsigned *out) { (void)handle; *out = (unsigned)card[ARCHITECTURE]; return OK; }

int nvmlDeviceGetTotalEnergyConsumption(void *handle, unsigned long long *out) {
    (void)handle;
    if (card[ENERGY_HANG_US]) usleep((unsigned)card[ENERGY_HANG_US]);
    *out = (unsigned long long)card[ENERGY_MJ];
    return (int)card[ENERGY_RETURN];
}

struct field { uint32_t id, scope; int64_t timestamp, latency; int type, code; uint64_t value; };
int nvmlDeviceGetFieldValues(void *handle, int count, struct field *fields) {
    (void)handle;
    for (int i = 0; i < count; i++) {
        int64_t shown = -1;
        if (fields[i].id == 186 && fields[i].scope == 0) shown = card[INSTANT_MW];
        if (fields[i].id == 186 && fields[i].scope == 1) shown = card[MODULE_MW];
        if (fields[i].id == 185 && fields[i].scope == 2) shown = card[HBM_MW];
        fields[i].timestamp = wall_us() - card[FIELD_AGE_US];
        fields[i].latency = 0;
        fields[i].type = 1;
        fields[i].code = shown < 0 ? NOT_SUPPORTED : OK;
        fields[i].value = shown < 0 ? 0 : (uint64_t)shown;
    }
    return OK;
}

struct sample { unsigned long long timestamp, value; };
int nvmlDeviceGetSamples(void *handle, int type, unsigned long long seen, int *kind, unsigned *count, struct sample *out) {
    (void)handle;
    if (card[RING_RETURN]) return (int)card[RING_RETURN];
    if (type != 0) return NOT_SUPPORTED;
    int64_t step = card[RING_MS] * 1000, newest = wall_us() / step * step, first = newest - 118 * step;
    if ((int64_t)seen >= first) first = ((int64_t)seen / step + 1) * step;
    unsigned have = newest < first ? 0 : (unsigned)((newest - first) / step + 1);
    *kind = 1;
    if (!have) return NOT_FOUND;
    if (!out) { *count = have; return OK; }
    if (*count < have) return INSUFFICIENT;
    *count = have;
    for (unsigned i = 0; i < have; i++) out[i] = (struct sample){(unsigned long long)(first + i * step), (unsigned long long)card[INSTANT_MW]};
    return OK;
}

int nvmlDeviceGetClockInfo(void *handle, int type, unsigned *out) {
    (void)handle;
    int64_t sm = card[SM_MHZ];
    if (card[LOCK_MAX_MHZ] && sm > card[LOCK_MAX_MHZ]) sm = card[LOCK_MAX_MHZ];
    *out = (unsigned)(type == 2 ? card[MEM_MHZ] : sm);
    return OK;
}
int nvmlDeviceGetMaxClockInfo(void *handle, int type, unsigned *out) {
    (void)handle;
    *out = (unsigned)(type == 2 ? card[MEM_MHZ] : card[MAX_SM_MHZ]);
    return OK;
}
int nvmlDeviceGetTemperature(void *handle, int type, unsigned *out) { (void)handle; (void)type; *out = (unsigned)card[TEMP_C]; return OK; }
int nvmlDeviceGetCurrentClocksThrottleReasons(void *handle, unsigned long long *out) {
    (void)handle;
    *out = (unsigned long long)card[THROTTLE] | (card[LOCK_MAX_MHZ] ? 2u : 0u) | (card[INSTANT_MW] >= card[LIMIT_MW] ? 4u : 0u);
    return OK;
}
int nvmlDeviceGetPowerManagementLimit(void *handle, unsigned *out) { (void)handle; *out = (unsigned)card[LIMIT_MW]; return OK; }
int nvmlDeviceGetEnforcedPowerLimit(void *handle, unsigned *out) {
    (void)handle;
    *out = (unsigned)(card[LIMIT_MW] < card[OUT_OF_BAND_MW] ? card[LIMIT_MW] : card[OUT_OF_BAND_MW]);
    return OK;
}
int nvmlDeviceGetPowerManagementLimitConstraints(void *handle, unsigned *low, unsigned *high) {
    (void)handle;
    *low = (unsigned)card[LIMIT_MIN_MW];
    *high = (unsigned)card[LIMIT_MAX_MW];
    return OK;
}
int nvmlDeviceSetPowerManagementLimit(void *handle, unsigned limit) {
    (void)handle;
    if (!card[MAY_SET]) return NO_PERMISSION;
    if (limit < card[LIMIT_MIN_MW] || limit > card[LIMIT_MAX_MW]) return INVALID;
    card[LIMIT_MW] = limit;
    card[SET_CALLS]++;
    return OK;
}
int nvmlDeviceSetGpuLockedClocks(void *handle, unsigned low, unsigned high) {
    (void)handle;
    if (!card[MAY_SET]) return NO_PERMISSION;
    card[LOCK_MIN_MHZ] = low;
    card[LOCK_MAX_MHZ] = high;
    card[SET_CALLS]++;
    return OK;
}
int nvmlDeviceResetGpuLockedClocks(void *handle) {
    (void)handle;
    if (!card[MAY_SET]) return NO_PERMISSION;
    card[LOCK_MIN_MHZ] = card[LOCK_MAX_MHZ] = 0;
    card[SET_CALLS]++;
    return OK;
}

struct process { unsigned pid, pad; unsigned long long memory; unsigned gi, ci; };
int nvmlDeviceGetComputeRunningProcesses_v3(void *handle, unsigned *count, struct process *out) {
    (void)handle;
    if (*count < 2) { *count = 2; return INSUFFICIENT; }
    *count = 2;
    out[0] = (struct process){(unsigned)getpid(), 0, 1 << 20, 0, 0};
    out[1] = (struct process){4242, 0, 5 << 20, 0, 0};
    return OK;
}
