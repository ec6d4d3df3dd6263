/* A libnvidia-ml.so.1 that replays known power. The file named by NVML_STUB, read anew at every call, says everything,
 * one "key value..." a line. A line that begins with "@FROM" or "@FROM-TO" holds between those moments (s) only, and a
 * later line goes before an earlier one. tests/nvml_stub.py writes that file and lists the keys.
 * A board whose number (from 0) is the value of `denied` does not open; `bad NUMBER CODE` gives one that answers with
 * NVML's code. Time is the double in the memory-mapped file `time`, or else the monotonic clock less `epoch`, times `speed`. */
#include <ctype.h>
#include <fcntl.h>
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

enum { OK, UNINITIALIZED, INVALID, UNSUPPORTED, NO_PERMISSION, NOT_FOUND = 6, TOO_SMALL, NO_DRIVER = 9, LOST = 15 }; /* nvml.h */
enum { LINES = 64, WIDTH = 1024, SEGMENTS = 128 };

typedef struct { double from, to; char key[48], value[WIDTH]; } Line;
typedef struct { Line line[LINES]; int lines; double now; uintptr_t board; } State;

static int users; /* nvmlInit is counted: the last nvmlShutdown ends the library */

static double text_number(const char *text) { return strtod(text, NULL); }

static void read_state(State *state) {
    const char *path = getenv("NVML_STUB");
    FILE *file = path ? fopen(path, "r") : NULL;
    char buffer[WIDTH];
    state->lines = 0;
    while (file && state->lines < LINES && fgets(buffer, sizeof buffer, file)) {
        Line *line = &state->line[state->lines];
        char *at = buffer;
        line->from = -INFINITY;
        line->to = INFINITY;
        if (*at == '@') {
            line->from = strtod(at + 1, &at);
            if (*at == '-') line->to = strtod(at + 1, &at);
            while (isspace(*at)) at++;
        }
        buffer[strcspn(buffer, "\n")] = 0;
        line->value[0] = 0;
        if (sscanf(at, "%47s %1023[^\n]", line->key, line->value) >= 1) state->lines++;
    }
    if (file) fclose(file);
}

/* "2/KEY" is about the second board, "KEY" about all. */
static int of_board(const State *state, const char *own, const char *key) {
    const char *slash = strchr(own, '/');
    if (!slash) return !strcmp(own, key);
    return strtoul(own, NULL, 10) == state->board && !strcmp(slash + 1, key);
}

static const char *find(const State *state, const char *key, const char *otherwise) {
    for (int i = state->lines - 1; i >= 0; i--)
        if (of_board(state, state->line[i].key, key) && state->now >= state->line[i].from && state->now < state->line[i].to)
            return state->line[i].value;
    return otherwise;
}

static double number(const State *state, const char *key, double otherwise) {
    const char *text = find(state, key, NULL);
    return text ? text_number(text) : otherwise;
}

static double now(const State *state) {
    static volatile double *shared;
    const char *path = find(state, "time", NULL);
    if (path && !shared) {
        int file = open(path, O_RDONLY);
        void *at = file < 0 ? MAP_FAILED : mmap(NULL, sizeof(double), PROT_READ, MAP_SHARED, file, 0);
        if (at == MAP_FAILED) abort();
        close(file);
        shared = at;
    }
    if (path) return *shared;
    struct timespec clock;
    clock_gettime(CLOCK_MONOTONIC, &clock);
    return (clock.tv_sec + clock.tv_nsec * 1e-9 - number(state, "epoch", 0)) * number(state, "speed", 1);
}

/* Joules from 0 to `end` under the trace "duration:from_w:to_w ...", which repeats. */
static double energy(const State *state, double end) {
    double length[SEGMENTS], first[SEGMENTS], last[SEGMENTS], period = 0, period_j = 0;
    int count = 0;
    const char *at = find(state, "trace", "1:100:100");
    for (int used; count < SEGMENTS; at += used) {
        if (sscanf(at, "%lf:%lf:%lf%n", length + count, first + count, last + count, &used) != 3) break;
        period += length[count];
        period_j += length[count] * (first[count] + last[count]) / 2;
        count++;
    }
    double whole = floor(end / period), rest = end - whole * period, total = whole * period_j;
    for (int i = 0; i < count && rest > 0; i++) {
        double part = fmin(rest, length[i]), slope = (last[i] - first[i]) / length[i];
        total += part * (first[i] + slope * part / 2);
        rest -= part;
    }
    return total;
}

static double last_step(const State *state) {
    double step = number(state, "step", 0.1), phase = number(state, "phase", 0);
    return floor((state->now - phase) / step) * step + phase;
}

static double mean_mw(const State *state, double span) {
    double end = last_step(state);
    return 1000 * number(state, "gain", 1) * (energy(state, end) - energy(state, end - span)) / span;
}

static unsigned long long counter_mj(const State *state) {
    double at = last_step(state), from = number(state, "reset", 0);
    at = fmin(at, number(state, "stuck", INFINITY));
    return 1000 * number(state, "gain", 1) * number(state, "factor", 1) * (energy(state, at) - energy(state, from));
}

/* What every call begins with: is the library up, the board there, and the call to succeed? */
static int begin(State *state, const char *function, uintptr_t board) {
    char key[96];
    read_state(state);
    state->board = board;
    state->now = 0;
    state->now = now(state);
    snprintf(key, sizeof key, "fail:%.80s", function);
    key[47] = 0;
    int code = number(state, key, OK);
    if (code) return code;
    if (!users) return UNINITIALIZED;
    return find(state, "lost", NULL) && strncmp(function, "nvmlSystem", 10) ? LOST : OK;
}

#define BEGIN_ON(board)                         \
    State state;                                \
    int code = begin(&state, __func__, board);  \
    if (code) return code
#define BEGIN BEGIN_ON(0)

/* Boards: the lines "gpu UUID NAME", in order; a handle is the number of the line, from 1. */
static const char *board(const State *state, uintptr_t handle) {
    for (int i = 0; i < state->lines; i++)
        if (!strcmp(state->line[i].key, "gpu") && !--handle) return state->line[i].value;
    return NULL;
}

int nvmlInitWithFlags(unsigned flags) {
    State state;
    (void)flags;
    int code = begin(&state, __func__, 0);
    if (code && code != UNINITIALIZED) return code;
    if (!board(&state, 1)) return NO_DRIVER;
    users++;
    return OK;
}
int nvmlShutdown(void) { return users ? (users--, OK) : UNINITIALIZED; }
const char *nvmlErrorString(int code) { return code == LOST ? "GPU is lost" : "stub error"; }

static int copy(char *to, unsigned length, const char *text) {
    if (strlen(text) >= length) return TOO_SMALL;
    strcpy(to, text);
    return OK;
}

int nvmlSystemGetDriverVersion(char *to, unsigned length) {
    BEGIN;
    return copy(to, length, find(&state, "driver", "580.159.03"));
}
int nvmlSystemGetNVMLVersion(char *to, unsigned length) {
    BEGIN;
    return copy(to, length, "13.580.159.03");
}
int nvmlDeviceGetCount_v2(unsigned *count) {
    BEGIN;
    for (*count = 0; board(&state, *count + 1); ++*count) {}
    return OK;
}
int nvmlDeviceGetHandleByIndex_v2(unsigned index, uintptr_t *handle) {
    BEGIN;
    *handle = index + 1;
    if (number(&state, "denied", -1) == index) return NO_PERMISSION;
    return board(&state, index + 1) ? OK : INVALID;
}
int nvmlDeviceGetHandleByUUID(const char *uuid, uintptr_t *handle) {
    BEGIN;
    const char *text;
    for (*handle = 1; (text = board(&state, *handle)); ++*handle)
        if (!strncmp(text, uuid, strlen(uuid)) && text[strlen(uuid)] == ' ') return OK;
    return NOT_FOUND;
}
int nvmlDeviceGetIndex(uintptr_t handle, unsigned *index) {
    BEGIN_ON(handle);
    *index = handle - 1;
    return OK;
}
int nvmlDeviceGetUUID(uintptr_t handle, char *to, unsigned length) {
    BEGIN_ON(handle);
    const char *text = board(&state, handle);
    char uuid[96];
    unsigned bad, error;
    if (sscanf(find(&state, "bad", ""), "%u %u", &bad, &error) == 2 && bad + 1 == handle) return error;
    return text && sscanf(text, "%95s", uuid) == 1 ? copy(to, length, uuid) : NOT_FOUND;
}
int nvmlDeviceGetName(uintptr_t handle, char *to, unsigned length) {
    BEGIN_ON(handle);
    const char *text = board(&state, handle), *space = text ? strchr(text, ' ') : NULL;
    return space ? copy(to, length, space + 1) : NOT_FOUND;
}
int nvmlDeviceGetVbiosVersion(uintptr_t handle, char *to, unsigned length) {
    BEGIN_ON(handle);
    return copy(to, length, find(&state, "vbios", "96.00.89.00.01"));
}

#define UNSIGNED(function, key, otherwise)           \
    int function(uintptr_t handle, unsigned *value) { \
        BEGIN_ON(handle);                           \
        *value = number(&state, key, otherwise);     \
        return OK;                                   \
    }
#define UNSIGNED_OF(function, key, otherwise)                   \
    int function(uintptr_t handle, int what, unsigned *value) { \
        BEGIN_ON(handle);                           \
        (void)what;                               \
        *value = number(&state, key, otherwise);                \
        return OK;                                              \
    }
UNSIGNED(nvmlDeviceGetEnforcedPowerLimit, "limit_mw", 700000)
UNSIGNED(nvmlDeviceGetPowerManagementDefaultLimit, "default_limit_mw", 700000)
UNSIGNED(nvmlDeviceGetPersistenceMode, "persistence", 1)
UNSIGNED_OF(nvmlDeviceGetTemperature, "temperature", 45)
UNSIGNED_OF(nvmlDeviceGetClockInfo, "sm_clock", 1980)
UNSIGNED_OF(nvmlDeviceGetMaxClockInfo, "max_clock", 1980)
UNSIGNED_OF(nvmlDeviceGetDefaultApplicationsClock, "default_clock", 1980)

static int pair(uintptr_t handle, const char *function, unsigned *a, unsigned *b, unsigned first, unsigned second) {
    State state;
    int code = begin(&state, function, handle);
    *a = first, *b = second;
    return code;
}
int nvmlDeviceGetPowerManagementLimitConstraints(uintptr_t handle, unsigned *low, unsigned *high) {
    return pair(handle, __func__, low, high, 200000, 700000);
}
int nvmlDeviceGetEccMode(uintptr_t handle, unsigned *current, unsigned *pending) {
    BEGIN_ON(handle);
    unsigned mode = number(&state, "ecc", 1);
    return pair(handle, __func__, current, pending, mode, mode);
}
int nvmlDeviceGetMigMode(uintptr_t handle, unsigned *current, unsigned *pending) {
    BEGIN_ON(handle);
    unsigned mode = number(&state, "mig", 0);
    return pair(handle, __func__, current, pending, mode, mode);
}
int nvmlDeviceGetMemoryInfo(uintptr_t handle, unsigned long long *total_free_used) {
    BEGIN;
    (void)handle;
    total_free_used[0] = (unsigned long long)number(&state, "memory_mib", 81559) << 20;
    return OK;
}
int nvmlDeviceGetCurrentClocksEventReasons(uintptr_t handle, unsigned long long *bits) {
    BEGIN_ON(handle);
    *bits = strtoull(find(&state, "reasons", "0"), NULL, 0);
    return OK;
}

typedef struct { unsigned pid; unsigned long long memory; unsigned gpu_instance, compute_instance; } Process;
int nvmlDeviceGetComputeRunningProcesses_v3(uintptr_t handle, unsigned *count, Process *processes) {
    BEGIN_ON(handle);
    unsigned room = processes ? *count : 0;
    *count = 0;
    for (int i = 0; i < state.lines; i++) {
        const Line *line = &state.line[i];
        if (strcmp(line->key, "process") || state.now < line->from || state.now >= line->to) continue;
        char *board; /* "process ID" is on every board, "process ID 2" on the second */
        double pid = strtod(line->value, &board);
        if (*board && strtoul(board, NULL, 10) != handle) continue;
        if (*count < room) processes[*count] = (Process){pid, 1 << 30, -1, -1};
        ++*count;
    }
    return *count > room ? TOO_SMALL : OK;
}

typedef struct {
    unsigned field, scope;
    int64_t timestamp, latency;
    int type, status;
    union { double d; unsigned u; unsigned long long ull; } value;
} Field;
int nvmlDeviceGetFieldValues(uintptr_t handle, int count, Field *fields) {
    BEGIN_ON(handle);
    for (Field *field = fields; field < fields + count; field++) {
        char key[32];
        snprintf(key, sizeof key, "fail:%u", field->field);
        field->status = number(&state, key, OK);
        if (field->status) continue;
        if (field->field == 83) {
            field->type = 3; /* unsigned long long */
            field->value.ull = counter_mj(&state);
        } else if (field->field == 185 || field->field == 186) {
            int average = field->field == 185;
            field->type = 1; /* unsigned int */
            field->value.u = mean_mw(&state, number(&state, average ? "average" : "instant", average ? 1.0 : 0.025));
        } else {
            field->status = UNSUPPORTED;
        }
    }
    return OK;
}
