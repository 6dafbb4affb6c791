// A stand-in for libnvinfer.so.10 with which the genuine Python bindings of TensorRT 10 load and work without a GPU.
//
// It has what a calibration needs: a network with inputs and layers, optimization profiles, a configuration, and a
// builder that calls the calibrator as TensorRT does, through the virtual methods that the bindings implement. The
// "device" is host memory. The order of the virtual methods is that of the library's binary interface; methods that
// are not needed do nothing.

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <string>
#include <utility>
#include <vector>

namespace {

struct Dims {
    int32_t count;
    int64_t sizes[8];
};

struct Root {
    virtual ~Root() noexcept = default;
};

// What the bindings hold: an object with a virtual destructor and a pointer to the implementation.
struct Handle {
    explicit Handle(Root* implementation) : implementation(implementation) {}
    virtual ~Handle() noexcept { delete implementation; }
    Root* implementation;
};

struct InterfaceInfo {
    char const* kind;
    int32_t major;
    int32_t minor;
};

// Implemented by the bindings, called from here.
struct Calibrator {
    virtual int32_t language() const noexcept = 0;
    virtual InterfaceInfo info() const noexcept = 0;
    virtual ~Calibrator() noexcept = default;
    virtual int32_t batchSize() const noexcept = 0;
    virtual bool batch(void* addresses[], char const* names[], int32_t count) noexcept = 0;
    virtual void const* readCache(std::size_t& length) noexcept = 0;
    virtual void writeCache(void const* data, std::size_t length) noexcept = 0;
    virtual int32_t algorithm() noexcept = 0;
};

struct LegacyCalibrator : Calibrator {
    virtual double quantile() const noexcept = 0;
    virtual double regressionCutoff() const noexcept = 0;
    virtual void const* readHistograms(std::size_t& length) noexcept = 0;
    virtual void writeHistograms(void const* data, std::size_t length) noexcept = 0;
};

char const* const kHeaders[] = {"LegacyCalibration", "EntropyCalibration", "EntropyCalibration2", "MinMaxCalibration"};
int32_t const kLegacy = 0;

// How the next builds behave, and what the last one saw; set and read by the tests.
struct Settings {
    int64_t maxBatches = -1;           // stop after so many
    bool reject = false;               // take no cache
    bool fail = false;                 // give no engine
    bool silent = false;               // call nothing, as for a network with Q/DQ nodes
    bool swapped = false;              // ask for the inputs in reverse order
    bool refuseProfile = false;        // take no calibration profile
    bool overwritten = false;          // spoil the memory of the cache after the call
    std::vector<std::string> caches;   // write these in place of the true one
} settings;

struct Seen {
    std::vector<std::string> calls;
    std::vector<std::string> batches;  // bytes found at the addresses, inputs in the order of the network
    std::string profile;
    double quantile = -1, cutoff = -1;
    uint32_t flags = 0;
} seen;

std::size_t sizeOf(int32_t type) { return type == 8 ? 8 : type == 0 || type == 3 ? 4 : type == 1 ? 2 : 1; }

struct Tensor : Root {
    Tensor(std::string name, int32_t type, Dims const& dims) : name(std::move(name)), type(type), dims(dims) {}
    std::string name;
    int32_t type;
    Dims dims;
    bool shape = false;

    virtual void setName(char const* value) noexcept { name = value; }
    virtual char const* getName() const noexcept { return name.c_str(); }
    virtual void setDimensions(Dims const& value) noexcept { dims = value; }
    virtual Dims getDimensions() const noexcept { return dims; }
    virtual void setType(int32_t value) noexcept { type = value; }
    virtual int32_t getType() const noexcept { return type; }
    virtual bool setDynamicRange(float, float) noexcept { return false; }
    virtual bool isNetworkInput() const noexcept { return true; }
    virtual bool isNetworkOutput() const noexcept { return false; }
    virtual void setBroadcast(bool) noexcept {}
    virtual bool getBroadcast() const noexcept { return false; }
    virtual int32_t getLocation() const noexcept { return 0; }
    virtual void setLocation(int32_t) noexcept {}
    virtual bool dynamicRangeIsSet() const noexcept { return false; }
    virtual void resetDynamicRange() noexcept {}
    virtual float getDynamicRangeMin() const noexcept { return 0; }
    virtual float getDynamicRangeMax() const noexcept { return 0; }
    virtual void setAllowedFormats(uint32_t) noexcept {}
    virtual uint32_t getAllowedFormats() const noexcept { return 1; }
    virtual bool isShapeTensor() const noexcept { return shape; }
};

Tensor& tensorOf(Handle* handle) { return *static_cast<Tensor*>(handle->implementation); }

struct Layer : Root {
    Handle* output = nullptr;
    std::string name = "layer";

    virtual int32_t getType() const noexcept { return 32; }
    virtual void setName(char const* value) noexcept { name = value; }
    virtual char const* getName() const noexcept { return name.c_str(); }
    virtual int32_t getNbInputs() const noexcept { return 0; }
    virtual Handle* getInput(int32_t) const noexcept { return nullptr; }
    virtual int32_t getNbOutputs() const noexcept { return 1; }
    virtual Handle* getOutput(int32_t) const noexcept { return output; }
};

// A layer object of the library carries its base's implementation and its own.
struct LayerHandle : Handle {
    explicit LayerHandle(Layer* layer) : Handle(layer), own(layer) {}
    Root* own;
};

struct Network : Root {
    std::vector<Handle*> inputs;
    std::vector<LayerHandle*> layers;

    virtual Handle* addInput(char const* name, int32_t type, Dims const& dims) noexcept {
        inputs.push_back(new Handle(new Tensor(name, type, dims)));
        return inputs.back();
    }
    virtual void markOutput(Handle&) noexcept {}
    virtual Handle* addActivation(Handle&, int32_t) noexcept { return nullptr; }
    virtual Handle* addLRN(Handle&, int64_t, float, float, float) noexcept { return nullptr; }
    virtual Handle* addScale() noexcept { return nullptr; }
    virtual Handle* addSoftMax(Handle&) noexcept { return nullptr; }
    virtual Handle* addConcatenation() noexcept { return nullptr; }
    virtual Handle* addElementWise() noexcept { return nullptr; }
    virtual Handle* addUnary() noexcept { return nullptr; }
    virtual Handle* addShuffle(Handle& input) noexcept {
        Tensor const& from = tensorOf(&input);
        auto* layer = new Layer;
        layer->output = new Handle(new Tensor(from.name + "_out", from.type, from.dims));
        layers.push_back(new LayerHandle(layer));
        return layers.back();
    }
    virtual int32_t getNbLayers() const noexcept { return static_cast<int32_t>(layers.size()); }
    virtual Handle* getLayer(int32_t index) const noexcept { return layers.at(index); }
    virtual int32_t getNbInputs() const noexcept { return static_cast<int32_t>(inputs.size()); }
    virtual Handle* getInput(int32_t index) const noexcept { return inputs.at(index); }
};

struct Profile : Root {
    std::map<std::pair<std::string, int32_t>, Dims> shapes;  // by input, and 0 to 2 for MIN, OPT and MAX

    virtual bool setDimensions(char const* input, int32_t select, Dims const& dims) noexcept {
        shapes[{input, select}] = dims;
        return true;
    }
    virtual Dims getDimensions(char const* input, int32_t select) const noexcept { return shapes.at({input, select}); }
    virtual bool setShapeValues(char const*, int32_t, int32_t const*, int32_t) noexcept { return false; }
    virtual int32_t getNbShapeValues(char const*) const noexcept { return -1; }
    virtual int32_t const* getShapeValues(char const*, int32_t) const noexcept { return nullptr; }
    virtual bool setExtraMemoryTarget(float) noexcept { return true; }
    virtual float getExtraMemoryTarget() const noexcept { return 1; }
    virtual bool isValid() const noexcept { return true; }
};

struct Config : Root {
    uint32_t flags = 0;
    Calibrator* calibrator = nullptr;
    Profile const* profile = nullptr;

    virtual void setAvgTimingIterations(int32_t) noexcept {}
    virtual int32_t getAvgTimingIterations() const noexcept { return 1; }
    virtual void setEngineCapability(int32_t) noexcept {}
    virtual int32_t getEngineCapability() const noexcept { return 0; }
    virtual void setInt8Calibrator(Calibrator* value) noexcept { calibrator = value; }
    virtual Calibrator* getInt8Calibrator() const noexcept { return calibrator; }
    virtual void setFlags(uint32_t value) noexcept { flags = value; }
    virtual uint32_t getFlags() const noexcept { return flags; }
    virtual void clearFlag(int32_t flag) noexcept { flags &= ~(1U << flag); }
    virtual void setFlag(int32_t flag) noexcept { flags |= 1U << flag; }
    virtual bool getFlag(int32_t flag) const noexcept { return flags >> flag & 1U; }
    virtual void setDeviceType(Handle const*, int32_t) noexcept {}
    virtual int32_t getDeviceType(Handle const*) const noexcept { return 0; }
    virtual bool isDeviceTypeSet(Handle const*) const noexcept { return false; }
    virtual void resetDeviceType(Handle const*) noexcept {}
    virtual bool canRunOnDLA(Handle const*) const noexcept { return false; }
    virtual void setDLACore(int32_t) noexcept {}
    virtual int32_t getDLACore() const noexcept { return -1; }
    virtual void setDefaultDeviceType(int32_t) noexcept {}
    virtual int32_t getDefaultDeviceType() const noexcept { return 0; }
    virtual void reset() noexcept {}
    virtual void setProfileStream(void*) noexcept {}
    virtual void* getProfileStream() const noexcept { return nullptr; }
    virtual int32_t addOptimizationProfile(Handle const*) noexcept { return 0; }
    virtual int32_t getNbOptimizationProfiles() const noexcept { return 0; }
    virtual void setProfilingVerbosity(int32_t) noexcept {}
    virtual int32_t getProfilingVerbosity() const noexcept { return 0; }
    virtual void setAlgorithmSelector(void*) noexcept {}
    virtual void* getAlgorithmSelector() const noexcept { return nullptr; }
    virtual bool setCalibrationProfile(Handle const* value) noexcept {
        profile = static_cast<Profile const*>(value->implementation);
        return !settings.refuseProfile;
    }
    virtual Handle const* getCalibrationProfile() noexcept { return nullptr; }
};

struct Memory : Root {
    std::string bytes = "engine";
    virtual void* data() const noexcept { return const_cast<char*>(bytes.data()); }
    virtual std::size_t size() const noexcept { return bytes.size(); }
    virtual int32_t type() const noexcept { return 2; }
};

int64_t elements(Dims const& dims) {
    int64_t n = 1;
    for (int32_t i = 0; i < dims.count; ++i) n *= dims.sizes[i];
    return n;
}

std::string text(Dims const& dims) {
    std::string result;
    for (int32_t i = 0; i < dims.count; ++i) result += (i ? "x" : "") + std::to_string(dims.sizes[i]);
    return result;
}

struct Build {
    Network const& network;
    Config const& config;
    std::vector<std::string> names;
    std::vector<Dims> shapes;
    std::map<std::string, float> amax;

    Build(Network const& network, Config const& config) : network(network), config(config) {
        for (Handle* handle : network.inputs) {
            Tensor const& tensor = tensorOf(handle);
            names.push_back(tensor.name);
            Dims dims = tensor.dims;
            if (config.profile && config.profile->shapes.count({tensor.name, 1})) {
                dims = config.profile->shapes.at({tensor.name, 1});
                for (int32_t select = 0; select < 3; ++select)
                    seen.profile += tensor.name + ":" + text(config.profile->shapes.at({tensor.name, select})) + " ";
            }
            shapes.push_back(dims);
        }
    }

    std::string header() const { return std::string("-") + kHeaders[config.calibrator->algorithm()]; }

    // Another algorithm or major version is rejected, and so is what is no cache.
    bool accepts(std::string const& cache) const {
        std::string const line = cache.substr(0, cache.find('\n'));
        return !settings.reject && line.rfind("TRT-10", 0) == 0 && line.size() == 10 + header().size() &&
            line.compare(10, std::string::npos, header()) == 0;
    }

    void take(std::vector<void*> const& addresses, std::vector<std::size_t> const& order) {
        std::string bytes;
        for (std::size_t i = 0; i < names.size(); ++i) {
            std::size_t slot = 0;
            while (order[slot] != i) ++slot;
            Tensor const& tensor = tensorOf(network.inputs[i]);
            auto const* at = static_cast<char const*>(addresses[slot]);
            int64_t const n = elements(shapes[i]);
            bytes.append(at, n * (tensor.type == 1 ? 4 : sizeOf(tensor.type)));
            if (tensor.type > 1) continue;
            for (int64_t k = 0; k < n; ++k) {
                float value;
                std::memcpy(&value, at + 4 * k, 4);
                amax[tensor.name] = std::fmax(amax[tensor.name], std::fabs(value));
            }
        }
        seen.batches.push_back(bytes);
    }

    void write() const {
        std::vector<std::string> caches = settings.caches;
        if (caches.empty()) {
            std::string cache = "TRT-101601" + header() + "\n";
            auto line = [&cache](std::string const& name, float scale) {
                uint32_t bits;
                std::memcpy(&bits, &scale, 4);
                char hex[16];
                std::snprintf(hex, sizeof hex, "%x", bits);
                cache += name + ": " + hex + "\n";
            };
            for (auto const& [name, value] : amax) {
                line(name, value / 127.0F);
                for (LayerHandle* layer : network.layers)
                    if (tensorOf(static_cast<Layer*>(layer->own)->output).name == name + "_out")
                        line(name + "_out", value / 127.0F);
            }
            caches.push_back(cache);
        }
        for (std::string cache : caches) {
            seen.calls.push_back("write");
            config.calibrator->writeCache(cache.data(), cache.size());
            if (settings.overwritten) std::memset(&cache[0], '?', cache.size());
        }
    }

    void calibrate() {
        Calibrator& calibrator = *config.calibrator;
        seen.calls.push_back("read");
        std::size_t length = 0;
        void const* cache = calibrator.readCache(length);
        if (cache && accepts(std::string(static_cast<char const*>(cache), length))) return;
        if (calibrator.algorithm() == kLegacy) {
            auto& legacy = static_cast<LegacyCalibrator&>(calibrator);
            seen.quantile = legacy.quantile();
            seen.cutoff = legacy.regressionCutoff();
            std::size_t none = 0;
            if (legacy.readHistograms(none)) std::abort();
            legacy.writeHistograms("histograms", 10);
        }
        seen.calls.push_back("size " + std::to_string(calibrator.batchSize()));
        std::vector<std::size_t> order;
        for (std::size_t i = 0; i < names.size(); ++i) order.push_back(settings.swapped ? names.size() - 1 - i : i);
        std::vector<char const*> asked;
        for (std::size_t i : order) asked.push_back(names[i].c_str());
        for (int64_t n = 0; n != settings.maxBatches; ++n) {
            std::vector<void*> addresses(names.size(), nullptr);
            seen.calls.push_back("batch");
            if (!calibrator.batch(addresses.data(), asked.data(), static_cast<int32_t>(asked.size()))) break;
            take(addresses, order);
        }
        write();
    }
};

struct Builder : Root {
    void* log;
    explicit Builder(void* log) : log(log) {}

    virtual bool hasFastFp16() const noexcept { return true; }
    virtual bool hasFastInt8() const noexcept { return true; }
    virtual int32_t getMaxDLABatchSize() const noexcept { return 0; }
    virtual int32_t getNbDLACores() const noexcept { return 0; }
    virtual void setGpuAllocator(void*) noexcept {}
    virtual Handle* createBuilderConfig() noexcept { return new Handle(new Config); }
    virtual Handle* createNetworkV2(uint32_t) noexcept { return new Handle(new Network); }
    virtual Handle* createOptimizationProfile() noexcept { return new Handle(new Profile); }
    virtual void setErrorRecorder(void*) noexcept {}
    virtual void* getErrorRecorder() const noexcept { return nullptr; }
    virtual void reset() noexcept {}
    virtual bool hasTf32() const noexcept { return true; }
    virtual Handle* buildSerializedNetwork(Handle& network, Handle& config) noexcept {
        auto const& chosen = *static_cast<Config*>(config.implementation);
        seen.flags = chosen.flags;
        if (chosen.calibrator && !settings.silent)
            Build(*static_cast<Network*>(network.implementation), chosen).calibrate();
        return settings.fail ? nullptr : new Handle(new Memory);
    }
    virtual bool isNetworkSupported(Handle const&, Handle const&) const noexcept { return true; }
    virtual void* getLogger() const noexcept { return log; }
};

std::string answer;  // what a reading function returned last

}  // namespace

#define EXPORTED extern "C" __attribute__((visibility("default")))

EXPORTED void* createInferBuilder_INTERNAL(void* log, int32_t) { return new Handle(new Builder(log)); }
EXPORTED void* createInferRuntime_INTERNAL(void*, int32_t) { return nullptr; }
EXPORTED void* createInferRefitter_INTERNAL(void*, void*, int32_t) { return nullptr; }
EXPORTED void* createNvOnnxParser_INTERNAL(void*, void*, int32_t) { return nullptr; }
EXPORTED void* createNvOnnxParserRefitter_INTERNAL(void*, void*, int32_t) { return nullptr; }
EXPORTED int32_t getNvOnnxParserVersion() { return 101601; }
EXPORTED void* getBuilderPluginRegistry(int32_t) { return nullptr; }
EXPORTED void* getPluginRegistry() { return nullptr; }
EXPORTED bool initLibNvInferPlugins(void*, char const*) { return true; }

EXPORTED void standInReset() {
    settings = Settings();
    seen = Seen();
}
EXPORTED void standInStopAfter(int64_t batches) { settings.maxBatches = batches; }
EXPORTED void standInReject() { settings.reject = true; }
EXPORTED void standInFail() { settings.fail = true; }
EXPORTED void standInSilent() { settings.silent = true; }
EXPORTED void standInRefuseProfile() { settings.refuseProfile = true; }
EXPORTED void standInSwapped() { settings.swapped = true; }
EXPORTED void standInOverwrite() { settings.overwritten = true; }
EXPORTED void standInShapeInput(Handle* tensor) { tensorOf(tensor).shape = true; }
EXPORTED void standInCache(char const* data, std::size_t length) { settings.caches.emplace_back(data, length); }

EXPORTED char const* standInCalls() {
    answer.clear();
    for (std::string const& call : seen.calls) answer += (answer.empty() ? "" : ", ") + call;
    return answer.c_str();
}
EXPORTED char const* standInProfile() { return seen.profile.c_str(); }
EXPORTED uint32_t standInFlags() { return seen.flags; }
EXPORTED double standInQuantile() { return seen.quantile; }
EXPORTED double standInCutoff() { return seen.cutoff; }
EXPORTED std::size_t standInBatches() { return seen.batches.size(); }
EXPORTED char const* standInBatch(std::size_t index, std::size_t* length) {
    *length = seen.batches.at(index).size();
    return seen.batches.at(index).data();
}
