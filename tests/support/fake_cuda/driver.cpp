// A libcuda.so.1 without a GPU: device memory is host memory, streams are queues, kernels are C made from their PTX.
//
// `fake_behave` says when work on a stream is done: at once (eager), not before something waits for it (delayed), or so
// that streams take turns where the host waits for everything (interleaved); whether kernels compute; and whether freeing
// is careless: memory is spoilt without waiting for the work that uses it, as some memory managers do. The number of
// devices and of their processors comes from FAKE_CUDA_DEVICES and FAKE_CUDA_PROCESSORS.

#include <cuda.h>
#include <dlfcn.h>
#include <malloc.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <deque>
#include <functional>
#include <map>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <vector>

namespace {

struct Stream;

struct Point {  // a place in a stream's work
    Stream *stream;
    uint64_t position;
};

struct Work {
    std::function<void()> run;
    std::vector<Point> after;
};

struct Stream {
    std::deque<Work> queue;
    uint64_t done = 0, tail = 0;
    bool blocking = true, capturing = false;
    unsigned long long id = 0;
};

struct Event {
    Point point{nullptr, 0};
};

struct Kernel {
    std::string name;
    bool bound = false;  // to a context: a CUfunction, which launches take as well as a CUkernel
};

typedef void (*Code)(unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, const char *);

struct Compiled {
    Code code;
    std::vector<int> offsets, sizes;
};

enum Count { LAUNCHES, UPLOADS, DOWNLOADS, ALLOCATIONS, FREES, EVENTS, WAITS, QUERIES, PINNED, SYNCHRONISATIONS, COUNTS };

std::recursive_mutex everything;
typedef std::lock_guard<std::recursive_mutex> Locked;
uint64_t counts[COUNTS];
// Never destroyed: threads may outlive static destructors.
auto &kernels = *new std::map<std::string, Compiled>;
auto &streams = *new std::set<Stream *>;
auto &of_threads = *new std::map<std::thread::id, Stream *>;
auto &devices_of_memory = *new std::map<uintptr_t, std::pair<size_t, int>>;
Stream *legacy = new Stream;
unsigned long long ids = 2;
thread_local std::vector<CUcontext> contexts;

const char *setting(const char *name, const char *otherwise) {
    const char *value = getenv(name);
    return value && *value ? value : otherwise;
}

enum Order { EAGER, DELAYED, INTERLEAVED };
Order order = EAGER;
bool computes = true, careless = false;
int device_count() { return atoi(setting("FAKE_CUDA_DEVICES", "1")); }
CUcontext context_of(int device) { return (CUcontext)(uintptr_t)(0x1000 + device); }
int device_of(CUcontext context) { return (int)((uintptr_t)context - 0x1000); }

void run(Stream *stream, uint64_t position) {
    while (stream->done < position && !stream->queue.empty()) {
        Work work = std::move(stream->queue.front());
        stream->queue.pop_front();
        for (auto &point : work.after) run(point.stream, point.position);
        work.run();
        stream->done++;
    }
}

std::vector<Stream *> all_streams() {
    std::vector<Stream *> all(streams.begin(), streams.end());
    for (auto &entry : of_threads) all.push_back(entry.second);
    all.push_back(legacy);
    return all;
}

void run_everything() {
    for (bool more = order == INTERLEAVED; more;) {
        more = false;
        for (auto stream : all_streams())
            if (stream->done < stream->tail) run(stream, stream->done + 1), more = true;
    }
    for (auto stream : all_streams()) run(stream, stream->tail);
}

Stream *stream_of(CUstream handle) {
    if ((uintptr_t)handle <= 1) return legacy;
    if ((uintptr_t)handle == 2) {
        auto &stream = of_threads[std::this_thread::get_id()];
        if (!stream) stream = new Stream, stream->id = ids++;
        return stream;
    }
    Stream *stream = (Stream *)handle;
    if (!streams.count(stream)) {
        fprintf(stderr, "fake CUDA: no such stream: %p\n", (void *)handle);
        abort();
    }
    return stream;
}

void enqueue(Stream *stream, std::function<void()> todo, std::vector<Point> after = {}) {
    if (stream == legacy) {  // waits for all streams that are not created as non-blocking, and they for it
        for (auto other : streams)
            if (other->blocking) after.push_back({other, other->tail});
        for (auto &entry : of_threads) after.push_back({entry.second, entry.second->tail});
    } else if (stream->blocking) {
        after.push_back({legacy, legacy->tail});
    }
    stream->queue.push_back({std::move(todo), std::move(after)});
    stream->tail++;
    if (order == EAGER) run(stream, stream->tail);
}

CUresult launch(CUfunction function, const unsigned *grid, const unsigned *block, CUstream handle, void **parameters) {
    Locked lock(everything);
    counts[LAUNCHES]++;
    if (contexts.empty()) return CUDA_ERROR_INVALID_CONTEXT;
    const std::string &name = ((Kernel *)function)->name;
    bool empty = !grid[0] || !grid[1] || !grid[2] || !block[0] || !block[1] || !block[2];
    if (empty || grid[0] > 0x7fffffffu || grid[1] > 65535 || grid[2] > 65535 ||
        (uint64_t)block[0] * block[1] * block[2] > 1024)
        return CUDA_ERROR_INVALID_VALUE;
    auto found = kernels.find(name);
    if (found == kernels.end()) {
        fprintf(stderr, "fake CUDA: no code for %s\n", name.c_str());
        return CUDA_ERROR_NOT_FOUND;
    }
    const Compiled &kernel = found->second;
    std::string packed(kernel.offsets.empty() ? 0 : kernel.offsets.back() + kernel.sizes.back(), 0);
    for (size_t i = 0; i < kernel.offsets.size(); i++)  // as the driver does: arguments are copied at the launch
        memcpy(&packed[kernel.offsets[i]], parameters[i], kernel.sizes[i]);
    std::vector<unsigned> g(grid, grid + 3), b(block, block + 3);
    Code code = kernel.code;
    if (!computes) code = nullptr;
    enqueue(stream_of(handle), [=] {
        if (code) code(g[0], g[1], g[2], b[0], b[1], b[2], packed.data());
    });
    return CUDA_SUCCESS;
}

CUresult copy(void *target, const void *source, size_t size, Stream *stream, bool wait) {
    enqueue(stream, [=] { memcpy(target, source, size); });
    if (wait) run(stream, stream->tail);
    return CUDA_SUCCESS;
}

}  // namespace

#define DONE return CUDA_SUCCESS

extern "C" {

// --- What tests ask and tell

void fake_counts(uint64_t *out) { memcpy(out, counts, sizeof counts); }

void fake_behave(int how, int computing, int freeing) {
    Locked lock(everything);
    run_everything();
    order = (Order)how, computes = computing, careless = freeing;
}

void fake_register(const char *name, void *code, int n, const int *offsets, const int *sizes) {
    Locked lock(everything);
    kernels[name] = Compiled{(Code)code, {offsets, offsets + n}, {sizes, sizes + n}};
}

// --- Devices and contexts

CUresult cuInit(unsigned) { DONE; }
CUresult cuDriverGetVersion(int *version) { *version = 13000; DONE; }
CUresult cuDeviceGetCount(int *n) { *n = device_count(); DONE; }
CUresult cuDeviceGet(CUdevice *device, int i) { *device = i; DONE; }
CUresult cuDeviceGetName(char *name, int n, CUdevice) { snprintf(name, n, "no GPU (fake driver)"); DONE; }
CUresult cuDeviceGetUuid_v2(CUuuid *id, CUdevice device) { memset(id, 7 + device, sizeof *id); DONE; }
CUresult cuDeviceTotalMem_v2(size_t *n, CUdevice) { *n = 80ull << 30; DONE; }
CUresult cuDeviceGetAttribute(int *value, CUdevice_attribute attribute, CUdevice) {
    switch (attribute) {
        case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR: *value = 9; break;
        case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR: *value = 0; break;
        case CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT: *value = atoi(setting("FAKE_CUDA_PROCESSORS", "132")); break;
        case CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_BLOCK: *value = 1024; break;
        default: *value = 1;
    }
    DONE;
}
CUresult cuDevicePrimaryCtxRetain(CUcontext *context, CUdevice device) { *context = context_of(device); DONE; }
CUresult cuDevicePrimaryCtxRelease_v2(CUdevice) { DONE; }
CUresult cuDevicePrimaryCtxReset_v2(CUdevice) { DONE; }
CUresult cuDevicePrimaryCtxGetState(CUdevice, unsigned *flags, int *active) { *flags = 0, *active = 1; DONE; }
CUresult cuCtxGetCurrent(CUcontext *context) { *context = contexts.empty() ? nullptr : contexts.back(); DONE; }
CUresult cuCtxSetCurrent(CUcontext context) {
    if (!contexts.empty()) contexts.pop_back();
    if (context) contexts.push_back(context);
    DONE;
}
CUresult cuCtxPushCurrent_v2(CUcontext context) { contexts.push_back(context); DONE; }
CUresult cuCtxPopCurrent_v2(CUcontext *context) {
    if (contexts.empty()) return CUDA_ERROR_INVALID_CONTEXT;
    if (context) *context = contexts.back();
    contexts.pop_back();
    DONE;
}
CUresult cuCtxGetDevice(CUdevice *device) {
    if (contexts.empty()) return CUDA_ERROR_INVALID_CONTEXT;
    *device = device_of(contexts.back());
    DONE;
}
CUresult cuCtxGetDevice_v2(CUdevice *device, CUcontext context) { *device = device_of(context); DONE; }
CUresult cuCtxSynchronize() {
    Locked lock(everything);
    counts[SYNCHRONISATIONS]++;
    run_everything();
    DONE;
}
CUresult cuCtxSynchronize_v2(CUcontext) { return cuCtxSynchronize(); }
CUresult cuCtxGetId(CUcontext context, unsigned long long *id) { *id = device_of(context) + 1; DONE; }
CUresult cuCtxGetStreamPriorityRange(int *least, int *greatest) { *least = 0, *greatest = -5; DONE; }
CUresult cuMemGetInfo_v2(size_t *unused, size_t *total) { *unused = 70ull << 30, *total = 80ull << 30; DONE; }

// --- Memory. What is new is not zero where kernels compute, so that reading it too early shows.

CUresult cuMemAlloc_v2(CUdeviceptr *address, size_t size) {
    Locked lock(everything);
    counts[ALLOCATIONS]++;
    void *memory = nullptr;
    if (posix_memalign(&memory, 512, size ? size : 1)) return CUDA_ERROR_OUT_OF_MEMORY;
    if (size < (64u << 20)) memset(memory, computes ? 0xCD : 0, size);
    devices_of_memory[(uintptr_t)memory] = {size, contexts.empty() ? 0 : device_of(contexts.back())};
    *address = (CUdeviceptr)memory;
    DONE;
}
CUresult cuMemFree_v2(CUdeviceptr address) {
    Locked lock(everything);
    counts[FREES]++;
    void *memory = (void *)address;
    devices_of_memory.erase((uintptr_t)memory);
    if (careless) {
        memset(memory, 0xEE, malloc_usable_size(memory));
        DONE;
    }
    run_everything();
    free(memory);
    DONE;
}
CUresult cuMemHostAlloc(void **memory, size_t size, unsigned) {
    Locked lock(everything);
    counts[PINNED]++;
    if (posix_memalign(memory, 4096, size ? size : 1)) return CUDA_ERROR_OUT_OF_MEMORY;
    memset(*memory, 0xCD, size);
    DONE;
}
CUresult cuMemFreeHost(void *memory) {
    Locked lock(everything);
    if (careless) {
        memset(memory, 0xEE, malloc_usable_size(memory));
        DONE;
    }
    run_everything();
    free(memory);
    DONE;
}
CUresult cuMemcpyHtoD_v2(CUdeviceptr target, const void *source, size_t size) {
    Locked lock(everything);
    counts[UPLOADS]++;
    return copy((void *)target, source, size, legacy, true);
}
CUresult cuMemcpyDtoH_v2(void *target, CUdeviceptr source, size_t size) {
    Locked lock(everything);
    counts[DOWNLOADS]++;
    return copy(target, (void *)source, size, legacy, true);
}
CUresult cuMemcpyDtoD_v2(CUdeviceptr target, CUdeviceptr source, size_t size) {
    Locked lock(everything);
    return copy((void *)target, (void *)source, size, legacy, false);
}
CUresult cuMemcpyHtoDAsync_v2(CUdeviceptr target, const void *source, size_t size, CUstream handle) {
    Locked lock(everything);
    counts[UPLOADS]++;
    return copy((void *)target, source, size, stream_of(handle), false);
}
CUresult cuMemcpyDtoHAsync_v2(void *target, CUdeviceptr source, size_t size, CUstream handle) {
    Locked lock(everything);
    counts[DOWNLOADS]++;
    return copy(target, (void *)source, size, stream_of(handle), false);
}
CUresult cuMemcpyDtoDAsync_v2(CUdeviceptr target, CUdeviceptr source, size_t size, CUstream handle) {
    Locked lock(everything);
    return copy((void *)target, (void *)source, size, stream_of(handle), false);
}
CUresult cuMemsetD8_v2(CUdeviceptr target, unsigned char value, size_t size) {
    Locked lock(everything);
    enqueue(legacy, [=] { memset((void *)target, value, size); });
    DONE;
}
CUresult cuMemsetD8Async(CUdeviceptr target, unsigned char value, size_t size, CUstream handle) {
    Locked lock(everything);
    enqueue(stream_of(handle), [=] { memset((void *)target, value, size); });
    DONE;
}
CUresult cuPointerGetAttribute(void *value, CUpointer_attribute attribute, CUdeviceptr address) {
    Locked lock(everything);
    auto found = devices_of_memory.upper_bound((uintptr_t)address);
    bool known = found != devices_of_memory.begin();
    if (known) --found, known = (uintptr_t)address < found->first + (found->second.first ? found->second.first : 1);
    switch (attribute) {
        case CU_POINTER_ATTRIBUTE_DEVICE_POINTER: *(CUdeviceptr *)value = address; DONE;
        case CU_POINTER_ATTRIBUTE_MEMORY_TYPE: *(unsigned *)value = CU_MEMORYTYPE_DEVICE; break;
        case CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL: *(int *)value = known ? found->second.second : 0; break;
        default: *(unsigned *)value = 0;
    }
    return known ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}
CUresult cuPointerGetAttributes(unsigned n, CUpointer_attribute *attributes, void **values, CUdeviceptr address) {
    for (unsigned i = 0; i < n; i++) cuPointerGetAttribute(values[i], attributes[i], address);
    DONE;
}

// --- Streams

CUresult cuStreamCreate(CUstream *handle, unsigned flags) {
    Locked lock(everything);
    Stream *stream = new Stream;
    stream->blocking = !(flags & CU_STREAM_NON_BLOCKING);
    stream->id = ids++;
    streams.insert(stream);
    *handle = (CUstream)stream;
    DONE;
}
CUresult cuStreamCreateWithPriority(CUstream *handle, unsigned flags, int) { return cuStreamCreate(handle, flags); }
CUresult cuStreamDestroy_v2(CUstream handle) {
    Locked lock(everything);
    Stream *stream = stream_of(handle);
    run(stream, stream->tail);
    streams.erase(stream);
    DONE;
}
CUresult cuStreamSynchronize(CUstream handle) {
    Locked lock(everything);
    counts[SYNCHRONISATIONS]++;
    Stream *stream = stream_of(handle);
    if (stream == legacy) enqueue(stream, [] {});
    run(stream, stream->tail);
    DONE;
}
CUresult cuStreamWaitEvent(CUstream handle, CUevent event, unsigned) {
    Locked lock(everything);
    counts[WAITS]++;
    Point point = ((Event *)event)->point;
    if (point.stream) enqueue(stream_of(handle), [] {}, {point});
    DONE;
}
CUresult cuStreamGetCtx(CUstream, CUcontext *context) { return cuCtxGetCurrent(context); }
CUresult cuStreamGetCtx_v2(CUstream, CUcontext *context, CUgreenCtx *green) {
    if (green) *green = nullptr;
    return cuCtxGetCurrent(context);
}
CUresult cuStreamGetDevice(CUstream, CUdevice *device) { return cuCtxGetDevice(device); }
CUresult cuStreamGetFlags(CUstream handle, unsigned *flags) {
    Locked lock(everything);
    *flags = stream_of(handle)->blocking ? CU_STREAM_DEFAULT : CU_STREAM_NON_BLOCKING;
    DONE;
}
CUresult cuStreamGetPriority(CUstream, int *priority) { *priority = 0; DONE; }
CUresult cuStreamGetId(CUstream handle, unsigned long long *id) {
    Locked lock(everything);
    *id = stream_of(handle)->id;
    DONE;
}
CUresult cuStreamQuery(CUstream handle) {
    Locked lock(everything);
    Stream *stream = stream_of(handle);
    return stream->done == stream->tail ? CUDA_SUCCESS : CUDA_ERROR_NOT_READY;
}
CUresult cuStreamBeginCapture_v2(CUstream handle, CUstreamCaptureMode) {
    Locked lock(everything);
    stream_of(handle)->capturing = true;
    DONE;
}
CUresult cuStreamEndCapture(CUstream handle, CUgraph *graph) {
    Locked lock(everything);
    stream_of(handle)->capturing = false;
    *graph = nullptr;
    DONE;
}
CUresult cuStreamIsCapturing(CUstream handle, CUstreamCaptureStatus *status) {
    Locked lock(everything);
    Stream *stream = stream_of(handle);
    *status = stream->capturing ? CU_STREAM_CAPTURE_STATUS_ACTIVE : CU_STREAM_CAPTURE_STATUS_NONE;
    if (stream == legacy)
        for (auto other : streams)
            if (other->blocking && other->capturing) return CUDA_ERROR_STREAM_CAPTURE_IMPLICIT;
    DONE;
}

// --- Events

CUresult cuEventCreate(CUevent *event, unsigned) {
    Locked lock(everything);
    counts[EVENTS]++;
    *event = (CUevent) new Event;
    DONE;
}
CUresult cuEventDestroy_v2(CUevent) { DONE; }
CUresult cuEventRecord(CUevent event, CUstream handle) {
    Locked lock(everything);
    Stream *stream = stream_of(handle);
    enqueue(stream, [] {});
    ((Event *)event)->point = {stream, stream->tail};
    DONE;
}
CUresult cuEventRecordWithFlags(CUevent event, CUstream handle, unsigned) { return cuEventRecord(event, handle); }
CUresult cuEventQuery(CUevent event) {
    Locked lock(everything);
    counts[QUERIES]++;
    Point point = ((Event *)event)->point;
    return !point.stream || point.stream->done >= point.position ? CUDA_SUCCESS : CUDA_ERROR_NOT_READY;
}
CUresult cuEventSynchronize(CUevent event) {
    Locked lock(everything);
    counts[SYNCHRONISATIONS]++;
    Point point = ((Event *)event)->point;
    if (point.stream) run(point.stream, point.position);
    DONE;
}
CUresult cuEventElapsedTime_v2(float *milliseconds, CUevent, CUevent) { *milliseconds = 1; DONE; }

// --- Kernels

CUresult cuLibraryLoadData(CUlibrary *library, const void *, CUjit_option *, void **, unsigned, CUlibraryOption *, void **,
                           unsigned) {
    *library = (CUlibrary) new int;
    DONE;
}
CUresult cuLibraryUnload(CUlibrary) { DONE; }
CUresult cuLibraryGetKernel(CUkernel *kernel, CUlibrary, const char *name) {
    *kernel = (CUkernel) new Kernel{name};
    DONE;
}
CUresult cuLibraryGetModule(CUmodule *module, CUlibrary) { *module = (CUmodule)1; DONE; }
CUresult cuKernelGetLibrary(CUlibrary *library, CUkernel) { *library = (CUlibrary)1; DONE; }
CUresult cuKernelGetFunction(CUfunction *function, CUkernel kernel) {
    *function = (CUfunction) new Kernel{((Kernel *)kernel)->name, true};
    DONE;
}
CUresult cuKernelGetAttribute(int *value, CUfunction_attribute attribute, CUkernel, CUdevice) {
    *value = attribute == CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK ? 1024 : 0;
    DONE;
}
static CUresult parameter(const Kernel *kernel, bool bound, size_t i, size_t *offset, size_t *size) {
    Locked lock(everything);
    if (kernel->bound != bound) return CUDA_ERROR_INVALID_HANDLE;
    auto found = kernels.find(kernel->name);
    if (found == kernels.end() || i >= found->second.offsets.size()) return CUDA_ERROR_INVALID_VALUE;
    *offset = found->second.offsets[i];
    if (size) *size = found->second.sizes[i];
    DONE;
}
CUresult cuKernelGetParamInfo(CUkernel kernel, size_t i, size_t *offset, size_t *size) {
    return parameter((Kernel *)kernel, false, i, offset, size);
}
CUresult cuFuncGetParamInfo(CUfunction function, size_t i, size_t *offset, size_t *size) {
    return parameter((Kernel *)function, true, i, offset, size);
}
CUresult cuLaunchKernel(CUfunction function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                        unsigned, CUstream stream, void **parameters, void **) {
    unsigned grid[] = {gx, gy, gz}, block[] = {bx, by, bz};
    return launch(function, grid, block, stream, parameters);
}
CUresult cuLaunchKernelEx(const CUlaunchConfig *c, CUfunction function, void **parameters, void **) {
    unsigned grid[] = {c->gridDimX, c->gridDimY, c->gridDimZ}, block[] = {c->blockDimX, c->blockDimY, c->blockDimZ};
    return launch(function, grid, block, c->hStream, parameters);
}

// --- The rest of what libraries ask for

CUresult cuGetErrorName(CUresult, const char **text) { *text = "CUDA_ERROR_FAKE"; DONE; }
CUresult cuGetErrorString(CUresult, const char **text) { *text = "an error of the fake driver"; DONE; }
CUresult cuModuleGetLoadingMode(CUmoduleLoadingMode *mode) { *mode = CU_MODULE_LAZY_LOADING; DONE; }
CUresult cuGetProcAddress_v2(const char *name, void **address, int, cuuint64_t, CUdriverProcAddressQueryResult *status) {
    static void *self = nullptr;
    if (!self) {
        Dl_info info;
        dladdr((void *)&cuInit, &info);
        self = dlopen(info.dli_fname, RTLD_LAZY | RTLD_NOLOAD);
    }
    void *found = nullptr;
    for (const char *suffix : {"", "_v2", "_v3", "_v4"})
        if ((found = dlsym(self, (std::string(name) + suffix).c_str()))) break;
    if (!strcmp(name, "cuGetProcAddress")) found = (void *)&cuGetProcAddress_v2;
    *address = found;
    if (status) *status = found ? CU_GET_PROC_ADDRESS_SUCCESS : CU_GET_PROC_ADDRESS_SYMBOL_NOT_FOUND;
    return found ? CUDA_SUCCESS : CUDA_ERROR_NOT_FOUND;
}
}
