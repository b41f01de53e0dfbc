//! The acoustic model: a window of sound in, log probabilities of tokens out.

use std::sync::Arc;

use rten::{ModelOptions, NodeId, OpRegistry, RunOptions, ThreadPool};
use rten_tensor::NdTensor;
use rten_tensor::prelude::*;

use super::phoneme::Inventory;
use super::{VoiceError, WINDOW_SAMPLES};

/// Frames that the model gives for a window of 2.2 s: one each 20 ms, both ends included.
pub(super) const WINDOW_FRAMES: usize = WINDOW_SAMPLES / FRAME_SAMPLES + 1;

/// Samples from one frame to the next: 20 ms.
pub(super) const FRAME_SAMPLES: usize = 320;

/// The operators that `scripts/voice/convert-model` writes, and no others: each one that is named here is
/// code in the program, and all that rten has are megabytes of it.
fn operators() -> OpRegistry {
    rten::op_registry!(
        Add,
        Conv,
        Div,
        Erf,
        LayerNormalization,
        Log,
        LogSoftmax,
        MatMul,
        Max,
        Mul,
        Pad,
        Reshape,
        Sigmoid,
        Softmax,
        Split,
        Sub,
        Transpose,
        Unsqueeze
    )
}

/// A loaded phoneme recogniser. Immutable: detectors share one through an `Arc`.
pub struct Model {
    inner: rten::Model,
    inventory: Inventory,
    input: NodeId,
    output: NodeId,
    options: RunOptions,
}

impl std::fmt::Debug for Model {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Model").field("tokens", &self.inventory.len()).finish_non_exhaustive()
    }
}

impl Model {
    /// What an event says in `model`: the package the weights come from, its version, and what we taught it
    /// (`docs/voice.md`, "Model card").
    pub const NAME: &str = "hama-1.7.0+hark3";

    /// Reads the weights (`onnx`, the content of the ONNX file) and the vocabulary (`vocabulary`,
    /// the text of the JSON file), and runs one silent window through them: a model that loads
    /// but cannot hear must not be found out by the first cry for help.
    ///
    /// Allocates about four times the size of the weights; takes tens of milliseconds.
    ///
    /// # Errors
    /// [`VoiceError::Weights`], [`VoiceError::Vocabulary`]: a file is damaged, or not of the model
    /// that this version of the program knows; fetch the models again.
    pub fn load(onnx: Vec<u8>, vocabulary: &str) -> Result<Self, VoiceError> {
        let weights = |error: &dyn std::fmt::Display| VoiceError::Weights(error.to_string());
        let inventory = Inventory::parse(vocabulary)?;
        let inner = ModelOptions::with_ops(operators()).load(onnx).map_err(|e| weights(&e))?;
        let node = |name: &str| inner.node_id(name).map_err(|e| weights(&e));
        let model = Self {
            input: node("waveform")?,
            output: node("log_probs")?,
            // One thread: a window is a few milliseconds of work, and the device has other
            // things to do than to wait for a detector on all of its cores.
            options: RunOptions::default()
                .with_thread_pool(Some(Arc::new(ThreadPool::with_num_threads(1)))),
            inventory,
            inner,
        };
        let frames = model.log_probs(vec![0.0; WINDOW_SAMPLES])?;
        let expected = WINDOW_FRAMES * model.inventory.len();
        if frames.len() == expected {
            Ok(model)
        } else {
            Err(weights(&format!("a window gave {} values instead of {expected}", frames.len())))
        }
    }

    pub(super) fn inventory(&self) -> &Inventory {
        &self.inventory
    }

    /// Log probabilities of a window, 2.2 s of 16 kHz mono: a frame of 20 ms after the other, in each
    /// one value for every token of the vocabulary, then the word boundary's and the blank's.
    ///
    /// # Errors
    /// [`VoiceError::Weights`]: the model failed on it, which one that loaded does not do.
    pub fn log_probs(&self, window: Vec<f32>) -> Result<Vec<f32>, VoiceError> {
        let weights = |error: &dyn std::fmt::Display| VoiceError::Weights(error.to_string());
        let samples = NdTensor::from_data([1, window.len()], window);
        let inputs = vec![(self.input, samples.into())];
        let mut outputs = self
            .inner
            .run(inputs, &[self.output], Some(self.options.clone()))
            .map_err(|e| weights(&e))?;
        let value = outputs.pop().ok_or_else(|| weights(&"no output"))?;
        let log_probs: NdTensor<f32, 3> =
            value.try_into().map_err(|e| weights(&format!("{e:?}")))?;
        Ok(log_probs.to_vec())
    }
}
