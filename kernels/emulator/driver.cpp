// driver: the functions of the CUDA driver API that cudarc's safe layer calls, over the engine.
// Work is done when it is asked for, unless its stream is captured: then it is kept as a step of a
// graph. Copies from pinned memory are done as late as they may: before the stream's next work, or when
// it or an event behind them is waited for. A fault of a kernel is told once, by the next call on its
// stream.

#include "run.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <dlfcn.h>
#include <elf.h>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <sys/mman.h>
#include <unistd.h>
#include <utility>

using namespace emulator;

using CUresult = int;
using CUdeviceptr = u64;

namespace {

// The errors that are returned: CUDA_ERROR_…
#define ERRORS(E)                                                                                  \
    E(INVALID_VALUE, 1) E(OUT_OF_MEMORY, 2) E(INVALID_DEVICE, 101) E(INVALID_IMAGE, 200)           \
    E(INVALID_CONTEXT, 201) E(NO_BINARY_FOR_GPU, 209) E(INVALID_HANDLE, 400) E(NOT_FOUND, 500)     \
    E(ILLEGAL_ADDRESS, 700) E(STREAM_CAPTURE_UNSUPPORTED, 900) E(STREAM_CAPTURE_UNMATCHED, 903) \
    E(INVALID_CLUSTER_SIZE, 912)
#define CODE(name, code) name = code,
#define NAME(name, code) {code, "CUDA_ERROR_" #name},
enum : CUresult { SUCCESS = 0, ERRORS(CODE) };
const std::map<CUresult, const char *> names{{SUCCESS, "CUDA_SUCCESS"}, ERRORS(NAME)};

using Step = std::function<bool()>;  // false after a fault
using Steps = std::vector<Step>;

// A copy from pinned memory that is under way, or an event behind it.
struct Late {
    Step step;
    u64 from, bytes;
};

struct Stream {
    std::unique_ptr<Steps> capture;
    std::atomic<bool> faulted{false};
    u64 launches = 0;
    std::mutex order;  // of `late`
    std::vector<Late> late;
};

struct Event {
    std::chrono::steady_clock::time_point time;
    Stream *stream;
};

// The interpreter of PTX (ptx/hook.rs), which is not part of this library.
struct Found {
    const void *entry;  // null if there is none of the name
    u32 threads, params;
};
struct Request {
    const void *entry;
    Index grid, block;
    u32 shared, bytes;
    const void *params;
    u64 seed;
    bool (*allocation)(u64 at, u64 *first, u64 *end);
};
struct Interpreter {
    void *(*open)(const char *text, char **problem);
    Found (*entry)(const void *module, const char *name);
    char *(*launch)(const Request *what);  // the fault; null if there is none
    void (*free)(char *text);
};
Interpreter interpreter{};

struct Function {
    const Entry *entry;
    const void *ptx;  // null if it was compiled for this machine
    std::string name;
    std::atomic<u32> shared_most{48 << 10};
    u32 shared_limit;  // of the model that it was loaded for
};

struct Module {
    void *library;
    void *ptx;
    std::map<std::string, Function> functions;
    std::map<std::string, Entry> entries;  // of PTX
};

// What the device is; `shared` is what a block may opt in to.
struct Model {
    u32 major, minor, multiprocessors, shared;
};
thread_local Model model{8, 0, 4, 163 << 10};

std::mutex lock;
std::map<std::string, void *> libraries;  // by their bytes; never closed
Stream null_stream;
std::set<Stream *> streams{&null_stream};
std::map<u64, u64> pinned;  // first address → bytes
char context;  // the one context is this address
thread_local void *current = nullptr;
// The device is there only for threads that ask for it, or with GRITLM_EMULATOR for the process:
// what picks a device by itself must not end up here.
thread_local bool shown = false;

Stream &stream_of(void *handle) {
    // 1 and 2 name the legacy and the per-thread default stream.
    return u64(handle) <= 2 ? null_stream : *static_cast<Stream *>(handle);
}

// The fault of the stream, once.
CUresult told(Stream &stream) { return stream.faulted.exchange(false) ? ILLEGAL_ADDRESS : SUCCESS; }

// Does what is under way.
void arrive(Stream &stream) {
    std::lock_guard<std::mutex> guard(stream.order);
    for (const Late &late : std::exchange(stream.late, {})) {
        late.step();
    }
}

// Does the step now, or keeps it while the stream is captured.
CUresult enqueue(void *handle, Step step) {
    Stream &stream = stream_of(handle);
    if (!current) {
        return INVALID_CONTEXT;
    }
    if (CUresult fault = told(stream)) {
        return fault;
    }
    if (stream.capture) {
        stream.capture->push_back(std::move(step));
        return SUCCESS;
    }
    arrive(stream);
    if (!step()) {
        stream.faulted = true;
    }
    return SUCCESS;
}

// Keeps the step for later, after what is under way; `from` is what it reads of pinned memory.
CUresult enqueue_late(void *handle, Step step, u64 from, u64 bytes) {
    Stream &stream = stream_of(handle);
    if (!current || stream.capture || stream.faulted) {
        return enqueue(handle, std::move(step));
    }
    std::lock_guard<std::mutex> guard(stream.order);
    stream.late.push_back({std::move(step), from, bytes});
    return SUCCESS;
}

bool is_pinned(u64 at) {
    std::lock_guard<std::mutex> guard(lock);
    auto next = pinned.upper_bound(at);
    return next != pinned.begin() && at < std::prev(next)->first + std::prev(next)->second;
}

CUresult wait(void *handle) {
    Stream &stream = stream_of(handle);
    if (current && !stream.capture) {
        arrive(stream);
    }
    return !current ? INVALID_CONTEXT : stream.capture ? STREAM_CAPTURE_UNSUPPORTED : told(stream);
}

void *pointer(CUdeviceptr at) { return reinterpret_cast<void *>(at); }

CUresult copy(void *to, const void *from, u64 bytes, bool to_device, bool from_device,
              void *stream) {
    if (bytes && ((to_device && !owned(to, bytes)) || (from_device && !owned(from, bytes)))) {
        return INVALID_VALUE;
    }
    auto step = [=] { return memmove(to, from, bytes), true; };
    if (to_device && !from_device && is_pinned(u64(from))) {
        return enqueue_late(stream, step, u64(from), bytes);
    }
    return enqueue(stream, step);
}

template <class T> CUresult fill(CUdeviceptr to, T value, u64 count, void *stream) {
    T *first = static_cast<T *>(pointer(to));
    if (count && !owned(first, count * sizeof(T))) {
        return INVALID_VALUE;
    }
    return enqueue(stream, [=] { return std::fill_n(first, count, value), true; });
}

// A shared library in memory, opened. Its size is where its table of sections ends.
CUresult open(const void *image, void *&library) {
    auto header = static_cast<const Elf64_Ehdr *>(image);
    if (!image || memcmp(header->e_ident, ELFMAG, SELFMAG)) {
        return INVALID_IMAGE;
    }
    if (header->e_machine != EM_X86_64) {
        return NO_BINARY_FOR_GPU;
    }
    u64 size = header->e_shoff + u64(header->e_shnum) * header->e_shentsize;
    std::string bytes(static_cast<const char *>(image), size);
    std::lock_guard<std::mutex> guard(lock);
    void *&known = libraries[bytes];
    if (!known) {
        int file = memfd_create("cubin", 0);
        // The file stays open: dlopen takes an equal name for the same library.
        std::string path = "/proc/self/fd/" + std::to_string(file);
        if (write(file, bytes.data(), size) != ssize_t(size)) {
            return OUT_OF_MEMORY;
        }
        known = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
        if (!known) {
            fprintf(stderr, "emulator: %s\n", dlerror());
            return INVALID_IMAGE;
        }
    }
    library = known;
    return SUCCESS;
}

// PTX, which begins with a comment or its version, taken apart by the interpreter.
CUresult interpret(const void *image, void *&module) {
    char *problem = nullptr;
    module = interpreter.open(static_cast<const char *>(image), &problem);
    if (module) {
        return SUCCESS;
    }
    fprintf(stderr, "emulator: PTX: %s\n", problem);
    interpreter.free(problem);
    return INVALID_IMAGE;
}

// Runs a kernel of PTX; false after a fault.
bool run_ptx(const Request &what) {
    char *fault = interpreter.launch(&what);
    if (fault) {
        keep_fault(fault);
        interpreter.free(fault);
    }
    return !fault;
}

// Kernels find the engine's symbols only if this library's are global, however it was opened.
__attribute__((constructor)) void make_global() {
    Dl_info info;
    if (dladdr(&context, &info)) {
        dlopen(info.dli_fname, RTLD_NOW | RTLD_GLOBAL | RTLD_NOLOAD);
    }
}

int attribute(int which) {
    switch (which) {
    case 1: return MAX_THREADS;              // threads a block
    case 8: return 48 << 10;                 // shared memory a block, without opting in
    case 10: return LANES;
    case 12: case 82: return 65536;          // registers
    case 16: return model.multiprocessors;
    case 38: return 4 << 20;                 // bytes of L2
    case 39: return 2048;                    // threads a multiprocessor
    case 75: return model.major;             // compute capability
    case 76: return model.minor;
    case 81: return model.shared + (1 << 10);  // shared memory of a multiprocessor
    case 97: return model.shared;            // shared memory a block may opt in to
    case 106: return 32;                     // blocks a multiprocessor
    case 111: return 1 << 10;                // shared memory the system takes of each block
    case 115: return 1;                      // memory pools: allocation in stream order
    default: return 0;
    }
}

template <class T> CUresult give(T *to, T value) {
    return to ? (*to = value, SUCCESS) : INVALID_VALUE;
}

CUresult allocate_to(CUdeviceptr *to, u64 bytes) {
    if (!current) {
        return INVALID_CONTEXT;
    }
    if (!bytes) {
        return INVALID_VALUE;
    }
    void *at = allocate(bytes);
    return at ? give(to, CUdeviceptr(at)) : OUT_OF_MEMORY;
}

CUresult device(int number) { return number == 0 ? SUCCESS : INVALID_DEVICE; }

bool exceeds(const Index &size, u32 x, u32 y, u32 z) {
    return !size.x || !size.y || !size.z || size.x > x || size.y > y || size.z > z;
}

}  // namespace

extern "C" {

void emulator_show(int yes) { shown = yes != 0; }
// What the device is that this thread opens; at first, the smallest that the kernels run on.
void emulator_model(const Model *given) { model = *given; }
void emulator_ptx(const Interpreter *given) { interpreter = *given; }

CUresult cuInit(u32) { return SUCCESS; }
CUresult cuDriverGetVersion(int *version) { return give(version, 13000); }
CUresult cuGetErrorName(CUresult code, const char **text) {
    auto found = names.find(code);
    return found == names.end() ? INVALID_VALUE : give(text, found->second);
}
CUresult cuGetErrorString(CUresult code, const char **text) { return cuGetErrorName(code, text); }

CUresult cuDeviceGetCount(int *count) {
    return give(count, shown || getenv("GRITLM_EMULATOR") ? 1 : 0);
}
CUresult cuDeviceGet(int *to, int number) { return number ? INVALID_DEVICE : give(to, 0); }
CUresult cuDeviceGetName(char *to, int room, int number) {
    snprintf(to, size_t(room), "emulator");
    return device(number);
}
CUresult cuDeviceGetUuid_v2(char *to, int number) {
    memcpy(to, "gritlm emulator", 16);
    return device(number);
}
CUresult cuDeviceTotalMem_v2(size_t *bytes, int number) {
    return number ? INVALID_DEVICE : give(bytes, size_t(MEMORY));
}
CUresult cuDeviceGetAttribute(int *to, int which, int number) {
    return number ? INVALID_DEVICE : give(to, attribute(which));
}

CUresult cuDevicePrimaryCtxRetain(void **to, int number) {
    return number ? INVALID_DEVICE : give(to, static_cast<void *>(&context));
}
CUresult cuDevicePrimaryCtxRelease_v2(int number) { return device(number); }
CUresult cuCtxSetCurrent(void *to) { return current = to, SUCCESS; }
CUresult cuCtxGetCurrent(void **to) { return give(to, current); }
CUresult cuCtxSynchronize() {
    std::lock_guard<std::mutex> guard(lock);
    CUresult result = SUCCESS;
    for (Stream *stream : streams) {
        result = std::max(result, wait(stream));
    }
    return result;
}

CUresult cuStreamCreate(void **to, u32) {
    if (!current) {
        return INVALID_CONTEXT;
    }
    auto stream = new Stream;
    std::lock_guard<std::mutex> guard(lock);
    streams.insert(stream);
    return give(to, static_cast<void *>(stream));
}
CUresult cuStreamDestroy_v2(void *stream) {
    std::lock_guard<std::mutex> guard(lock);
    if (!streams.erase(static_cast<Stream *>(stream))) {
        return INVALID_HANDLE;
    }
    return delete static_cast<Stream *>(stream), SUCCESS;
}
CUresult cuStreamSynchronize(void *stream) { return wait(stream); }
CUresult cuStreamQuery(void *stream) { return wait(stream); }
CUresult cuStreamWaitEvent(void *, void *, u32) { return SUCCESS; }

CUresult cuEventCreate(void **to, u32) { return give(to, static_cast<void *>(new Event())); }
CUresult cuEventDestroy_v2(void *event) { return delete static_cast<Event *>(event), SUCCESS; }
CUresult cuEventRecord(void *handle, void *on) {
    Event *event = static_cast<Event *>(handle);
    Stream &stream = stream_of(on);
    auto step = [=] { return event->time = std::chrono::steady_clock::now(), true; };
    event->stream = &stream;
    bool under_way;
    {
        std::lock_guard<std::mutex> guard(stream.order);
        under_way = !stream.late.empty();
    }
    return under_way ? enqueue_late(on, step, 0, 0) : enqueue(on, step);
}
CUresult cuEventSynchronize(void *event) {
    Stream *stream = static_cast<Event *>(event)->stream;
    bool is_there;
    {
        std::lock_guard<std::mutex> guard(lock);
        is_there = streams.count(stream);
    }
    if (is_there) {
        arrive(*stream);
    }
    return SUCCESS;
}
CUresult cuEventQuery(void *event) { return cuEventSynchronize(event); }
CUresult cuEventElapsedTime(float *to, void *start, void *end) {
    std::chrono::duration<float, std::milli> time =
        static_cast<Event *>(end)->time - static_cast<Event *>(start)->time;
    return give(to, time.count());
}

CUresult cuMemGetInfo_v2(size_t *available, size_t *all) {
    return give(available, size_t(MEMORY - allocated())), give(all, size_t(MEMORY));
}
CUresult cuMemAlloc_v2(CUdeviceptr *to, size_t bytes) {
    return null_stream.capture ? STREAM_CAPTURE_UNSUPPORTED : allocate_to(to, bytes);
}
CUresult cuMemFree_v2(CUdeviceptr at) {
    return !at || release(pointer(at)) ? SUCCESS : INVALID_VALUE;
}
CUresult cuMemAllocAsync(CUdeviceptr *to, size_t bytes, void *stream) {
    return stream_of(stream).capture ? STREAM_CAPTURE_UNSUPPORTED : allocate_to(to, bytes);
}
CUresult cuMemFreeAsync(CUdeviceptr at, void *stream) {
    // Other streams know their context.
    if (!current && u64(stream) <= 2) {
        return INVALID_CONTEXT;
    }
    if (stream_of(stream).capture) {
        return STREAM_CAPTURE_UNSUPPORTED;
    }
    arrive(stream_of(stream));
    return cuMemFree_v2(at);
}
CUresult cuMemHostAlloc(void **to, size_t bytes, u32) {
    void *at = aligned_alloc(4096, (bytes + 4095) & -4096ull);
    std::lock_guard<std::mutex> guard(lock);
    pinned[u64(at)] = bytes;
    return give(to, at);
}
CUresult cuMemFreeHost(void *at) {
    std::lock_guard<std::mutex> guard(lock);
    u64 first = u64(at), end = first + pinned[first];
    pinned.erase(first);
    for (Stream *stream : streams) {
        std::lock_guard<std::mutex> order(stream->order);
        for (const Late &late : stream->late) {
            if (late.bytes && late.from >= first && late.from < end) {
                keep_fault("pinned memory is freed while a copy from it is under way");
                stream->faulted = true;
            }
        }
        if (stream->faulted) {
            stream->late.clear();
        }
    }
    return free(at), SUCCESS;
}

CUresult cuMemcpyHtoDAsync_v2(CUdeviceptr to, const void *from, size_t n, void *stream) {
    return copy(pointer(to), from, n, true, false, stream);
}
CUresult cuMemcpyDtoHAsync_v2(void *to, CUdeviceptr from, size_t n, void *stream) {
    return copy(to, pointer(from), n, false, true, stream);
}
CUresult cuMemcpyDtoDAsync_v2(CUdeviceptr to, CUdeviceptr from, size_t n, void *stream) {
    return copy(pointer(to), pointer(from), n, true, true, stream);
}
CUresult cuMemcpyHtoD_v2(CUdeviceptr to, const void *from, size_t n) {
    CUresult result = cuMemcpyHtoDAsync_v2(to, from, n, nullptr);
    return result ? result : wait(nullptr);
}
CUresult cuMemcpyDtoH_v2(void *to, CUdeviceptr from, size_t n) {
    return cuMemcpyDtoHAsync_v2(to, from, n, nullptr);
}
CUresult cuMemcpyDtoD_v2(CUdeviceptr to, CUdeviceptr from, size_t n) {
    return cuMemcpyDtoDAsync_v2(to, from, n, nullptr);
}
CUresult cuMemsetD8Async(CUdeviceptr to, unsigned char v, size_t n, void *stream) {
    return fill(to, v, n, stream);
}
CUresult cuMemsetD8_v2(CUdeviceptr to, unsigned char v, size_t n) {
    return fill(to, v, n, nullptr);
}
CUresult cuMemsetD32Async(CUdeviceptr to, u32 v, size_t n, void *stream) {
    return fill(to, v, n, stream);
}
CUresult cuMemsetD32_v2(CUdeviceptr to, u32 v, size_t n) { return fill(to, v, n, nullptr); }

CUresult cuTensorMapEncodeTiled(u64 *map, int type, u32 rank, void *address, const u64 *sizes,
                                const u64 *strides, const u32 *box, const u32 *steps,
                                int interleave, int swizzle, int, int fill) {
    bool encoded = encode_map(map, type, rank, u64(address), sizes, strides, box, steps,
                              interleave, swizzle, fill);
    return encoded ? SUCCESS : INVALID_VALUE;
}

CUresult cuModuleLoadData(void **to, const void *image) {
    void *library = nullptr, *ptx = nullptr;
    if (!current) {
        return INVALID_CONTEXT;
    }
    char first = image ? *static_cast<const char *>(image) : 0;
    bool is_ptx = interpreter.open && (first == '/' || first == '.');
    if (CUresult error = is_ptx ? interpret(image, ptx) : open(image, library)) {
        return error;
    }
    return give(to, static_cast<void *>(new Module{library, ptx, {}, {}}));
}
CUresult cuModuleLoadDataEx(void **to, const void *image, u32, void *, void *) {
    return cuModuleLoadData(to, image);
}
CUresult cuModuleUnload(void *module) { return delete static_cast<Module *>(module), SUCCESS; }
CUresult cuModuleGetFunction(void **to, void *handle, const char *name) {
    Module &module = *static_cast<Module *>(handle);
    if (module.ptx) {
        Found found = interpreter.entry(module.ptx, name);
        if (!found.entry) {
            return NOT_FOUND;
        }
        std::lock_guard<std::mutex> guard(lock);
        Entry &entry = module.entries[name];
        entry.threads = found.threads;
        entry.bytes = found.params;
        Function &function = module.functions[name];
        function.entry = &entry;
        function.ptx = found.entry;
        function.name = name;
        function.shared_limit = model.shared;
        return give(to, static_cast<void *>(&function));
    }
    auto entry = static_cast<const Entry *>(dlsym(module.library, name));
    // dlsym looks into the libraries that the kernel's needs, too.
    Dl_info found;
    if (!entry || !dladdr(entry, &found) || strncmp(found.dli_fname, "/proc/self/fd/", 14) ||
        (entry->cluster && model.major < 9)) {
        return NOT_FOUND;
    }
    std::lock_guard<std::mutex> guard(lock);
    Function &function = module.functions[name];
    function.entry = entry;
    function.name = name;
    function.shared_limit = model.shared;
    return give(to, static_cast<void *>(&function));
}
CUresult cuFuncGetAttribute(int *to, int which, void *handle) {
    const Function &function = *static_cast<Function *>(handle);
    return which == 0   ? give(to, int(function.entry->threads))
           : which == 8 ? give(to, int(function.shared_most))
                        : give(to, which == 4 ? 64 : 0);
}
CUresult cuFuncSetAttribute(void *handle, int which, int value) {
    if (which == 8) {
        Function &function = *static_cast<Function *>(handle);
        if (value < 0 || u32(value) > function.shared_limit) {
            return INVALID_VALUE;
        }
        function.shared_most = u32(value);
    }
    return SUCCESS;
}

CUresult cuLaunchKernel(void *handle, u32 gx, u32 gy, u32 gz, u32 bx, u32 by, u32 bz, u32 shared,
                        void *stream, void **params, void **) {
    if (!handle) {
        return INVALID_HANDLE;
    }
    const Function &function = *static_cast<Function *>(handle);
    Index grid{gx, gy, gz}, block{bx, by, bz};
    if (exceeds(grid, 0x7fffffff, 65535, 65535) || exceeds(block, 1024, 1024, 64) ||
        u64(bx) * by * bz > std::min(function.entry->threads, MAX_THREADS) ||
        shared > function.shared_most) {
        return INVALID_VALUE;
    }
    if (u32 cluster = function.entry->cluster; cluster && (cluster > 8 || gx % cluster)) {
        return INVALID_CLUSTER_SIZE;
    }
    u32 bytes = function.entry->bytes;
    std::vector<ParamLine> copied((bytes + sizeof(ParamLine) - 1) / sizeof(ParamLine));
    memcpy(copied.data(), params[0], bytes);
    Stream &on = stream_of(stream);
    u64 number = on.launches++;
    return enqueue(stream, [=, &function] {
        static std::atomic<u64> launches{0};
        u64 drawn = seed() * 0x9e3779b97f4a7c15ull + number;
        if (function.ptx) {
            return run_ptx({function.ptx, grid, block, shared, bytes, copied.data(), drawn,
                            allocation});
        }
        return run(
            {function.entry, function.name, grid, block, shared, copied, drawn, ++launches});
    });
}

// CUlaunchConfig; what the attributes allow, such as coming early, the emulator makes no use of.
struct Config {
    u32 grid[3], block[3], shared;
    void *stream, *attributes;
    u32 count;
};
CUresult cuLaunchKernelEx(const Config *config, void *handle, void **params, void **extra) {
    auto [gx, gy, gz] = config->grid;
    auto [bx, by, bz] = config->block;
    return cuLaunchKernel(handle, gx, gy, gz, bx, by, bz, config->shared, config->stream, params,
                          extra);
}

CUresult cuStreamBeginCapture_v2(void *stream, int) {
    Stream &on = stream_of(stream);
    if (u64(stream) <= 2 || on.capture) {
        return STREAM_CAPTURE_UNSUPPORTED;
    }
    on.capture.reset(new Steps);
    return SUCCESS;
}
CUresult cuStreamEndCapture(void *stream, void **to) {
    Stream &on = stream_of(stream);
    if (!on.capture) {
        return STREAM_CAPTURE_UNMATCHED;
    }
    return give(to, static_cast<void *>(on.capture.release()));
}
CUresult cuStreamIsCapturing(void *stream, int *to) {
    return give(to, stream_of(stream).capture ? 1 : 0);
}
CUresult cuGraphInstantiateWithFlags(void **to, void *graph, u64) {
    return give(to, static_cast<void *>(new Steps(*static_cast<Steps *>(graph))));
}
CUresult cuGraphUpload(void *, void *) { return SUCCESS; }
CUresult cuGraphLaunch(void *graph, void *stream) {
    const Steps &steps = *static_cast<Steps *>(graph);
    return enqueue(stream, [&steps] {
        return std::all_of(steps.begin(), steps.end(), [](const Step &step) { return step(); });
    });
}
CUresult cuGraphExecDestroy(void *graph) { return delete static_cast<Steps *>(graph), SUCCESS; }
CUresult cuGraphDestroy(void *graph) { return delete static_cast<Steps *>(graph), SUCCESS; }
}
