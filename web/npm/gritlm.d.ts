/** Progress of loading a model, in bytes of its files. */
export interface Progress {
    loaded: number;
    total: number;
}

/** A file of a model, for sources of one's own. */
export type Source =
    /** The demo model of the package. */
    | "demo"
    /** The address of a GGUF file, or of a folder with `config.json`, `tokenizer.json` and
     * safetensors. Servers that know ranges are asked for each part when it is needed. */
    | string
    | URL
    /** A GGUF file of the visitor's, or all files of a checkpoint. */
    | Blob
    | File[]
    | FileList
    /** What an earlier visit has kept; see `kept`. */
    | { kept: string };

export interface OpenOptions {
    /** `"auto"` (the default) takes the GPU, or the CPU where WebGPU has none. */
    device?: "auto" | "webgpu" | "cpu";
    /** Tokens that the KV cache holds, for all requests together; 4096 by default. */
    kvTokens?: number;
    /** Tokens of a step; 512 by default. */
    batchTokens?: number;
    /** Whether the browser keeps the files for the next visit; it does by default. */
    keep?: boolean;
    onProgress?: (progress: Progress) => void;
    signal?: AbortSignal;
}

/** Opens a model. Rejects with one line that says what is wrong, and where. */
export function open(source: Source, options?: OpenOptions): Promise<Model>;

export interface About {
    name: string;
    /** The device, and why it was chosen. */
    device: string;
    /** Values of an embedding. */
    dimensions: number;
    layers: number;
    vocabulary: number;
    /** Tokens that a text may have. */
    positions: number;
    /** Bytes of the weights. */
    bytes: number;
    kvTokens: number;
    /** Whether it generates; a checkpoint without a head only embeds. */
    generates: boolean;
}

export interface EmbedOptions {
    /** What the vectors are for; for queries. */
    instruction?: string;
    /** Whether vectors have length 1; they have by default. */
    normalize?: boolean;
    /** Tokens after which a text is cut off; 512 by default. */
    maxLength?: number;
    /** Leading values of each vector to keep. */
    dimensions?: number;
    /** `"bbcc"` for bidirectional attention, `"cccc"` for causal attention. */
    attn?: "bbcc" | "cccc";
    signal?: AbortSignal;
}

export interface GenerateOptions {
    /** 256 by default. */
    maxTokens?: number;
    /** 0, the default, always takes the most likely token. */
    temperature?: number;
    topK?: number;
    topP?: number;
    minP?: number;
    repetitionPenalty?: number;
    seed?: number;
    /** Texts that end the answer and are no part of it. */
    stop?: string[];
    signal?: AbortSignal;
}

/** A piece of an answer: one token. */
export interface Piece {
    /** Text that is final; may be empty. */
    text: string;
    token: number;
    /** Why the answer ended, in its last piece. */
    finish: "stop" | "length" | null;
}

export interface Message {
    role: "system" | "user" | "assistant";
    content: string;
}

/** A loaded model. Calls that come at once share its batches. Aborting a signal, or leaving a loop over
 * an answer, cancels the call. */
export class Model {
    private constructor();
    readonly about: About;
    /** Embeds texts. */
    embed(texts: string[], options?: EmbedOptions): Promise<Float32Array[]>;
    /** Answers a user's turn; with `raw`, continues a text. */
    generate(
        prompt: string,
        options?: GenerateOptions & { raw?: boolean },
    ): AsyncGenerator<Piece, void>;
    /** Answers a conversation. */
    chat(messages: Message[], options?: GenerateOptions): AsyncGenerator<Piece, void>;
    /** Makes an empty index of documents. */
    index(): Index;
    /** The counters of the batch and its steps after number `since`, as a server's `/stats`. */
    stats(since?: number): { stats: Record<string, unknown>; steps: Record<string, number>[] };
    /** Frees the model. Calls under way fail. */
    close(): void;
}

export interface Found {
    /** Number of the document, in the order of adding. */
    index: number;
    score: number;
    text: string;
}

/** Documents in memory, with the keys and values of their embedding passes. */
export class Index {
    private constructor();
    readonly texts: string[];
    /** Embeds documents, each once and whole. */
    add(texts: string[], options?: { signal?: AbortSignal }): Promise<void>;
    /** Finds the nearest documents, the best first; 10 by default. */
    search(question: string, options?: { count?: number; signal?: AbortSignal }): Promise<Found[]>;
    /** Answers from the nearest document, without reading it again. The first value says which. */
    ask(
        question: string,
        options?: GenerateOptions,
    ): AsyncGenerator<Piece | { document: Found }, void>;
    /** Frees the documents. */
    close(): void;
}

/** A model that the browser keeps. */
export interface Kept {
    id: string;
    name: string;
    bytes: number;
}

/** The models that earlier visits have kept. */
export function kept(): Promise<Kept[]>;

/** Drops a kept model from the browser's storage. */
export function forget(id: string): Promise<void>;

/** Bytes of memory that the module has taken, without the GPU's. */
export function memoryBytes(): Promise<number>;
