/* A CUDA runtime and driver on host memory, for tests.
 *
 * Streams are lazy: nothing runs before something waits for it, and then only what that needs. Work that was put on
 * two streams without an event between them, memory that is written to while a copy from it is outstanding, a result
 * that is read without waiting: all of it gives wrong numbers here, every time.
 *
 * What no program should do is noted as a violation: the default stream, memory freed while work on it is
 * outstanding, copies outside of allocations, handles that are not live.
 *
 * With WITH_CUDA_HEADERS it includes NVIDIA's own headers: prototypes that differ do not compile.
 */
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#ifdef WITH_CUDA_HEADERS
#include <cuda.h>
#include <cuda_runtime_api.h>
#else
typedef int cudaError_t;
typedef int CUresult;
typedef int CUdevice;
typedef struct CUstream_st *cudaStream_t;
typedef struct CUevent_st *cudaEvent_t;
typedef struct CUgraph_st *cudaGraph_t;
typedef struct CUgraphExec_st *cudaGraphExec_t;
typedef struct CUgraphNode_st *cudaGraphNode_t;
enum cudaDeviceAttr { cudaDevAttrNone };
enum cudaMemcpyKind { cudaMemcpyHostToHost, cudaMemcpyHostToDevice, cudaMemcpyDeviceToHost, cudaMemcpyDeviceToDevice };
enum cudaStreamCaptureMode { cudaStreamCaptureModeGlobal, cudaStreamCaptureModeThreadLocal };
#endif

enum { OK = 0, INVALID = 1, MEMORY = 2, BAD_DEVICE = 101, HANDLE = 400, NOT_READY = 600, CAPTURING = 900, BROKEN = 901 };
typedef int (*Work)(int64_t);
enum Kind { COPY, RECORD, WAIT, WORK };
struct Op { enum Kind kind; void *to; const void *from; size_t size; cudaEvent_t event; long mark; Work work; int64_t argument; struct Op *next; };
struct List { struct Op *first, *last; };
struct CUstream_st { int live, number; struct List queue; struct CUgraph_st *capture; int spoiled; pthread_t by; struct CUstream_st *next; };
struct CUevent_st { int live, number; long recorded, done; cudaStream_t stream; struct CUevent_st *next; };
struct CUgraph_st { int live; struct List ops; };
struct CUgraphExec_st { int live; struct List ops; };
struct Memory { char *address; size_t size; int pinned; struct Memory *next; };

static struct CUstream_st *streams;
static struct CUevent_st *events;
static struct Memory *memories;
static int live_graphs, live_execs, numbers, lost, last_error, current_device;
static struct { int devices, integrated, major, minor, multiprocessors, driver; size_t limit; } machine = {1, 0, 8, 7, 16, 12060, 1u << 30};
static char log_text[1 << 22], violations[1 << 14];
static struct { char name[48]; int calls; } counts[64];
static struct { char name[48]; int call, code; } failing;
static pthread_mutex_t mutex;

__attribute__((constructor)) static void start(void) {
    pthread_mutexattr_t attributes;
    pthread_mutexattr_init(&attributes);
    pthread_mutexattr_settype(&attributes, PTHREAD_MUTEX_RECURSIVE);
    pthread_mutex_init(&mutex, &attributes);
}

static void append(char *text, size_t room, const char *line) {
    size_t used = strlen(text);
    if (used + strlen(line) + 2 < room) { strcpy(text + used, line); strcat(text, "\n"); }
}
static void violate(const char *what) { append(violations, sizeof violations, what); }
static int counted(const char *name) {
    for (int i = 0; i < 64; i++) {
        if (!counts[i].name[0]) strncpy(counts[i].name, name, 47);
        if (!strcmp(counts[i].name, name)) return ++counts[i].calls;
    }
    return 0;
}
static int entered(const char *name, int number) {
    char line[96];
    snprintf(line, sizeof line, "%s %d", name, number);
    append(log_text, sizeof log_text, line);
    return counted(name) == failing.call && !strcmp(name, failing.name) ? failing.code : lost;
}
static int fail(int code) { if (code && code != NOT_READY) last_error = code; pthread_mutex_unlock(&mutex); return code; }
#define ENTER(number) pthread_mutex_lock(&mutex); { int code_ = entered(__func__, number); if (code_) return fail(code_); }
#define LEAVE(code) return fail(code)
/* what frees does so on a lost GPU, too, and says that it is lost: programs free in any case */
#define ENTER_FREE pthread_mutex_lock(&mutex); { int code_ = entered(__func__, 0); if (code_ && code_ != lost) return fail(code_); }

static int is_stream(cudaStream_t s) {
    if ((uintptr_t)s <= 2) { violate("the default stream is used"); return 0; }
    for (struct CUstream_st *x = streams; x; x = x->next) if (x == s && x->live) return 1;
    violate("a stream that is not live is used");
    return 0;
}
static int is_event(cudaEvent_t e) {
    for (struct CUevent_st *x = events; x; x = x->next) if (x == e && x->live) return 1;
    violate("an event that is not live is used");
    return 0;
}
static struct Memory *memory_at(const void *address, size_t size) {
    for (struct Memory *m = memories; m; m = m->next)
        if ((char *)address >= m->address && (char *)address + size <= m->address + m->size) return m;
    return NULL;
}
static int spoils(void) { /* a call that must not be made while this thread captures */
    for (struct CUstream_st *s = streams; s; s = s->next)
        if (s->capture && pthread_equal(s->by, pthread_self())) { s->spoiled = 1; return 1; }
    return 0;
}
static void push(struct List *list, struct Op op) {
    struct Op *copy = malloc(sizeof op);
    *copy = op;
    copy->next = NULL;
    if (list->last) list->last->next = copy; else list->first = copy;
    list->last = copy;
}
static void put(cudaStream_t s, struct Op op) { push(s->capture ? &s->capture->ops : &s->queue, op); }
static void drop(struct List *list) {
    while (list->first) { struct Op *op = list->first; list->first = op->next; free(op); }
    list->last = NULL;
}
static void step(cudaStream_t s);
static void reach(cudaEvent_t e, long mark) { while (e->done < mark && e->stream && e->stream->queue.first) step(e->stream); }
static void step(cudaStream_t s) {
    struct Op op = *s->queue.first;
    free(s->queue.first);
    s->queue.first = op.next;
    if (!op.next) s->queue.last = NULL;
    if (lost) { if (op.kind == RECORD) op.event->done = op.mark; return; }
    switch (op.kind) {
        case COPY:
            if (!memory_at(op.to, op.size) || !memory_at(op.from, op.size)) violate("a copy reaches out of its allocations");
            else memmove(op.to, op.from, op.size);
            break;
        case RECORD: if (op.event->done < op.mark) op.event->done = op.mark; break;
        case WAIT: reach(op.event, op.mark); break;
        case WORK: { int code = op.work(op.argument); if (code) lost = code; }
    }
}
static void run_all(cudaStream_t s) { while (s->queue.first) step(s); }
static void release_memory(void *address, int pinned) {
    if (!address) return;
    for (struct Memory **m = &memories; *m; m = &(*m)->next) {
        if ((*m)->address != address) continue;
        struct Memory *found = *m;
        if (found->pinned != pinned) { violate("memory is freed by the other function"); return; }
        for (struct CUstream_st *s = streams; s; s = s->next)
            for (struct Op *op = s->queue.first; op && !lost; op = op->next)
                if (op->kind == COPY && (memory_at(op->to, 0) == found || memory_at(op->from, 0) == found))
                    violate("memory is freed while a copy of it is outstanding");
        memset(found->address, 0xDD, found->size);
        *m = found->next;
        free(found->address);
        free(found);
        return;
    }
    violate("memory is freed that was not allocated");
}
static void *allocate(size_t size, int pinned) {
    size_t used = 0;
    for (struct Memory *m = memories; m; m = m->next) used += m->size;
    if (used + size > machine.limit) return NULL;
    struct Memory *made = malloc(sizeof *made);
    *made = (struct Memory){aligned_alloc(256, (size + 255) / 256 * 256), size, pinned, memories};
    memset(made->address, 0xCD, size);
    memories = made;
    return made->address;
}

/* --- the runtime --- */

cudaError_t cudaGetDeviceCount(int *count) { ENTER(0) *count = machine.devices; LEAVE(machine.devices ? OK : 100); }
cudaError_t cudaGetDevice(int *device) { ENTER(0) *device = current_device; LEAVE(OK); }
cudaError_t cudaSetDevice(int device) { ENTER(device) if (device < 0 || device >= machine.devices) LEAVE(BAD_DEVICE); current_device = device; LEAVE(OK); }
cudaError_t cudaDeviceGetAttribute(int *value, enum cudaDeviceAttr attribute, int device) {
    ENTER((int)attribute)
    if (device >= machine.devices) LEAVE(BAD_DEVICE);
    switch ((int)attribute) {
        case 16: *value = machine.multiprocessors; break;
        case 18: *value = machine.integrated; break;
        case 19: *value = 1; break;
        case 75: *value = machine.major; break;
        case 76: *value = machine.minor; break;
        default: LEAVE(INVALID);
    }
    LEAVE(OK);
}
cudaError_t cudaDeviceSynchronize(void) { ENTER(0) if (spoils()) LEAVE(CAPTURING); for (struct CUstream_st *s = streams; s; s = s->next) run_all(s); LEAVE(lost); }
cudaError_t cudaDriverGetVersion(int *version) { ENTER(0) *version = machine.driver; LEAVE(OK); }
cudaError_t cudaRuntimeGetVersion(int *version) { ENTER(0) *version = 12060; LEAVE(OK); }
cudaError_t cudaGetLastError(void) { pthread_mutex_lock(&mutex); int code = last_error; last_error = lost; pthread_mutex_unlock(&mutex); return code; }
const char *cudaGetErrorName(cudaError_t error) {
    switch ((int)error) {
        case 0: return "cudaSuccess"; case 1: return "cudaErrorInvalidValue"; case 2: return "cudaErrorMemoryAllocation";
        case 35: return "cudaErrorInsufficientDriver"; case 100: return "cudaErrorNoDevice"; case 101: return "cudaErrorInvalidDevice";
        case 400: return "cudaErrorInvalidResourceHandle"; case 600: return "cudaErrorNotReady"; case 700: return "cudaErrorIllegalAddress";
        case 900: return "cudaErrorStreamCaptureUnsupported"; case 901: return "cudaErrorStreamCaptureInvalidated"; default: return "cudaErrorUnknown";
    }
}
const char *cudaGetErrorString(cudaError_t error) { return (int)error == 2 ? "out of memory" : "as its name says"; }
cudaError_t cudaMemGetInfo(size_t *free_, size_t *total) {
    ENTER(0)
    *free_ = *total = machine.limit;
    for (struct Memory *m = memories; m; m = m->next) *free_ -= m->size;
    LEAVE(OK);
}
cudaError_t cudaMalloc(void **pointer, size_t size) { ENTER(0) if (spoils()) LEAVE(CAPTURING); *pointer = allocate(size, 0); LEAVE(*pointer ? OK : MEMORY); }
cudaError_t cudaFree(void *pointer) { ENTER_FREE if (spoils()) LEAVE(CAPTURING); release_memory(pointer, 0); LEAVE(lost); }
cudaError_t cudaHostAlloc(void **pointer, size_t size, unsigned int flags) { ENTER((int)flags) if (spoils()) LEAVE(CAPTURING); *pointer = allocate(size, 1); LEAVE(*pointer ? OK : MEMORY); }
cudaError_t cudaHostGetDevicePointer(void **device, void *host, unsigned int flags) { ENTER((int)flags) if (!memory_at(host, 1)) LEAVE(INVALID); *device = host; LEAVE(OK); }
cudaError_t cudaFreeHost(void *pointer) { ENTER_FREE if (spoils()) LEAVE(CAPTURING); release_memory(pointer, 1); LEAVE(lost); }
cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t size, enum cudaMemcpyKind kind, cudaStream_t s) {
    ENTER((int)kind)
    if (!is_stream(s)) LEAVE(HANDLE);
    struct Memory *target = memory_at(to, size), *source = memory_at(from, size);
    if (!target || !source) { violate("a copy reaches out of its allocations"); LEAVE(INVALID); }
    if ((kind == cudaMemcpyHostToDevice && !(source->pinned && !target->pinned)) || (kind == cudaMemcpyDeviceToHost && !(target->pinned && !source->pinned)) || (kind == cudaMemcpyDeviceToDevice && (target->pinned || source->pinned)))
        violate("a copy has the wrong direction");
    put(s, (struct Op){.kind = COPY, .to = to, .from = from, .size = size});
    LEAVE(OK);
}
cudaError_t cudaStreamCreateWithFlags(cudaStream_t *made, unsigned int flags) {
    ENTER((int)flags)
    if (flags != 1) violate("a stream waits for the default stream");
    *made = calloc(1, sizeof **made);
    **made = (struct CUstream_st){.live = 1, .number = ++numbers, .next = streams};
    streams = *made;
    LEAVE(OK);
}
cudaError_t cudaStreamDestroy(cudaStream_t s) { ENTER_FREE if (!is_stream(s)) LEAVE(HANDLE); run_all(s); s->live = 0; LEAVE(lost); }
cudaError_t cudaStreamSynchronize(cudaStream_t s) { ENTER(0) if (!is_stream(s)) LEAVE(HANDLE); if (s->capture) { s->spoiled = 1; LEAVE(CAPTURING); } run_all(s); LEAVE(lost); }
cudaError_t cudaStreamWaitEvent(cudaStream_t s, cudaEvent_t e, unsigned int flags) {
    ENTER((int)flags)
    if (!is_stream(s) || !is_event(e)) LEAVE(HANDLE);
    put(s, (struct Op){.kind = WAIT, .event = e, .mark = e->recorded});
    LEAVE(OK);
}
cudaError_t cudaEventCreateWithFlags(cudaEvent_t *made, unsigned int flags) {
    ENTER((int)flags)
    *made = calloc(1, sizeof **made);
    **made = (struct CUevent_st){.live = 1, .number = ++numbers, .next = events};
    events = *made;
    LEAVE(OK);
}
cudaError_t cudaEventDestroy(cudaEvent_t e) { ENTER_FREE if (!is_event(e)) LEAVE(HANDLE); e->live = 0; LEAVE(lost); }
cudaError_t cudaEventRecord(cudaEvent_t e, cudaStream_t s) {
    ENTER(0)
    if (!is_stream(s) || !is_event(e)) LEAVE(HANDLE);
    if (e->stream && e->stream != s) reach(e, e->recorded); /* one event, one stream at a time */
    e->stream = s;
    put(s, (struct Op){.kind = RECORD, .event = e, .mark = ++e->recorded});
    LEAVE(OK);
}
cudaError_t cudaEventSynchronize(cudaEvent_t e) { ENTER(0) if (!is_event(e)) LEAVE(HANDLE); reach(e, e->recorded); LEAVE(lost); }
cudaError_t cudaEventQuery(cudaEvent_t e) { ENTER(0) if (!is_event(e)) LEAVE(HANDLE); LEAVE(e->done < e->recorded ? NOT_READY : OK); }
cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t a, cudaEvent_t b) {
    ENTER(0)
    if (!is_event(a) || !is_event(b)) LEAVE(HANDLE);
    if (a->done < a->recorded || b->done < b->recorded) LEAVE(NOT_READY);
    *ms = 1.5f;
    LEAVE(OK);
}
cudaError_t cudaStreamBeginCapture(cudaStream_t s, enum cudaStreamCaptureMode mode) {
    ENTER((int)mode)
    if (!is_stream(s)) LEAVE(HANDLE);
    s->capture = calloc(1, sizeof *s->capture);
    s->capture->live = 1;
    s->spoiled = 0;
    s->by = pthread_self();
    live_graphs++;
    LEAVE(OK);
}
cudaError_t cudaStreamEndCapture(cudaStream_t s, cudaGraph_t *made) {
    pthread_mutex_lock(&mutex);
    int code = entered(__func__, 0);
    if (!is_stream(s) || !s->capture) LEAVE(HANDLE);
    *made = s->capture;
    s->capture = NULL;
    if (!code && s->spoiled) code = BROKEN;
    if (code) { drop(&(*made)->ops); (*made)->live = 0; live_graphs--; *made = NULL; }
    LEAVE(code);
}
static int make_exec(cudaGraphExec_t *made, cudaGraph_t graph) {
    if (!graph || !graph->live) { violate("a graph that is not live is used"); return HANDLE; }
    *made = calloc(1, sizeof **made);
    (*made)->live = 1;
    for (struct Op *op = graph->ops.first; op; op = op->next) push(&(*made)->ops, *op);
    live_execs++;
    return OK;
}
#if defined(FAKE_CUDA_11)
cudaError_t cudaGraphInstantiate(cudaGraphExec_t *made, cudaGraph_t graph, cudaGraphNode_t *node, char *text, size_t size) {
    ENTER(11)
    if (node || text || size) LEAVE(INVALID);
    LEAVE(make_exec(made, graph));
}
#else
cudaError_t cudaGraphInstantiate(cudaGraphExec_t *made, cudaGraph_t graph, unsigned long long flags) { ENTER((int)flags) LEAVE(make_exec(made, graph)); }
cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t *made, cudaGraph_t graph, unsigned long long flags) { ENTER((int)flags) LEAVE(make_exec(made, graph)); }
#endif
cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t s) {
    ENTER(0)
    if (!is_stream(s)) LEAVE(HANDLE);
    if (!exec || !exec->live) { violate("a graph that is not live is launched"); LEAVE(HANDLE); }
    for (struct Op *op = exec->ops.first; op; op = op->next) put(s, *op);
    LEAVE(OK);
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph) { ENTER_FREE if (!graph->live) { violate("a graph is destroyed twice"); LEAVE(HANDLE); } graph->live = 0; drop(&graph->ops); live_graphs--; LEAVE(lost); }
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) { ENTER_FREE if (!exec->live) { violate("a graph is destroyed twice"); LEAVE(HANDLE); } exec->live = 0; drop(&exec->ops); live_execs--; LEAVE(lost); }

/* --- the driver --- */

CUresult cuInit(unsigned int flags) { ENTER((int)flags) LEAVE(OK); }
CUresult cuDeviceGet(CUdevice *device, int ordinal) { ENTER(ordinal) *device = ordinal; LEAVE(ordinal < machine.devices ? OK : BAD_DEVICE); }
CUresult cuDeviceGetName(char *name, int length, CUdevice device) { ENTER(device) snprintf(name, length, "Fake GPU %d", device); LEAVE(OK); }
CUresult cuDeviceTotalMem_v2(size_t *bytes, CUdevice device) { ENTER(device) *bytes = machine.limit; LEAVE(OK); }

/* --- for tests --- */

void fake_machine(int devices, int integrated, size_t limit) { machine.devices = devices; machine.integrated = integrated; machine.limit = limit; }
void fake_fail(const char *name, int call, int code) { strncpy(failing.name, name, 47); failing.call = call; failing.code = code; }
void fake_lose(int code) { lost = code; }
int fake_work(cudaStream_t s, Work work, int64_t argument) { /* a kernel: `work` is called when the stream gets there */
    pthread_mutex_lock(&mutex);
    if (!is_stream(s)) LEAVE(HANDLE);
    put(s, (struct Op){.kind = WORK, .work = work, .argument = argument});
    LEAVE(OK);
}
int fake_pending(cudaStream_t s) { pthread_mutex_lock(&mutex); int n = 0; for (struct Op *op = s->queue.first; op; op = op->next) n++; pthread_mutex_unlock(&mutex); return n; }
int fake_allocated(const void *address, size_t size) { pthread_mutex_lock(&mutex); int found = memory_at(address, size) != NULL; pthread_mutex_unlock(&mutex); return found; }
const char *fake_log(void) { return log_text; }
const char *fake_violations(void) { return violations; }
void fake_live(int *found) {
    pthread_mutex_lock(&mutex);
    memset(found, 0, 6 * sizeof *found);
    for (struct Memory *m = memories; m; m = m->next) found[m->pinned]++;
    for (struct CUstream_st *s = streams; s; s = s->next) found[2] += s->live;
    for (struct CUevent_st *e = events; e; e = e->next) found[3] += e->live;
    found[4] = live_graphs;
    found[5] = live_execs;
    pthread_mutex_unlock(&mutex);
}
void fake_purge(void) { /* forgets what is live, so that one test's leak is not the next one's */
    pthread_mutex_lock(&mutex);
    for (struct CUstream_st *s = streams; s; s = s->next) { s->live = 0; drop(&s->queue); }
    for (struct CUevent_st *e = events; e; e = e->next) e->live = 0;
    memories = NULL;
    live_graphs = live_execs = 0;
    pthread_mutex_unlock(&mutex);
}
void fake_reset(void) {
    pthread_mutex_lock(&mutex);
    log_text[0] = violations[0] = 0;
    memset(counts, 0, sizeof counts);
    memset(&failing, 0, sizeof failing);
    lost = last_error = current_device = 0;
    pthread_mutex_unlock(&mutex);
}
