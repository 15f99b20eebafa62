use burn::tensor::Distribution;
use serde_json::json;

use super::*;
use crate::study::{Dataset, Model, Workload};

fn workload(dataset: serde_json::Value, model: serde_json::Value) -> Workload {
    Workload::new(
        serde_json::from_value::<Dataset>(dataset).expect("a data set"),
        serde_json::from_value::<Model>(model).expect("a model"),
    )
}

/// A network of each kind, on the data set that it is for.
fn every_family() -> Vec<Workload> {
    let digits = || json!({"builtin": "digits"});
    let text = || json!({"builtin": "markov_text", "sequence_length": 12});
    vec![
        workload(
            digits(),
            json!({"family": "mlp", "normalization": {"kind": "layer"}}),
        ),
        workload(
            digits(),
            json!({"family": "cnn", "convolutions": 2, "dropout": 0.1}),
        ),
        workload(
            digits(),
            json!({"family": "cnn", "normalization": {"kind": "group", "groups": 4}}),
        ),
        workload(
            digits(),
            json!({"family": "resnet", "normalization": {"kind": "ghost_batch", "batch_size": 4}}),
        ),
        workload(
            json!({"builtin": "synthetic_images", "examples": 8}),
            json!({"family": "resnet", "style": "imagenet", "depth": 18}),
        ),
        workload(
            json!({"builtin": "synthetic_images", "examples": 8}),
            json!({"family": "resnet", "style": "imagenet", "depth": 50, "normalization": {"kind": "none"}}),
        ),
        workload(
            digits(),
            json!({"family": "transformer_encoder", "dropout": 0.1}),
        ),
        workload(
            digits(),
            json!({"family": "rnn", "cell": "gru", "depth": 2}),
        ),
        workload(text(), json!({"family": "transformer_lm"})),
        workload(text(), json!({"family": "rnn", "units": 24})),
        workload(
            digits(),
            json!({"family": "sequential", "layers": [
                {"layer": "conv2d", "channels": 4},
                {"layer": "avg_pool2d"},
                {"layer": "residual", "layers": [
                    {"layer": "norm", "normalization": {"kind": "batch"}},
                    {"layer": "activation", "function": "tanh"},
                    {"layer": "conv2d", "channels": 8, "stride": 2}
                ], "shortcut": [{"layer": "subsample", "stride": 2, "channels": 8}]},
                {"layer": "flatten"},
                {"layer": "linear", "units": 10, "bias": false},
                {"layer": "norm", "normalization": {"kind": "group", "groups": 5}},
                {"layer": "activation", "function": "sigmoid"},
                {"layer": "output"}
            ]}),
        ),
    ]
}

fn input(network: &Network, batch_size: usize, device: &Device) -> Value {
    use crate::study::Shape;
    let normal = Distribution::Normal(0.0, 1.0);
    let size = |count: u64| usize::try_from(count).expect("small");
    match Net::input(network) {
        Shape::Features { width } => {
            Value::Features(Tensor::random([batch_size, size(width)], normal, device))
        }
        Shape::Sequence { length, width } => Value::Sequence(Tensor::random(
            [batch_size, size(length), size(width)],
            normal,
            device,
        )),
        Shape::Image {
            channels,
            height,
            width,
        } => Value::Image(Tensor::random(
            [batch_size, size(channels), size(height), size(width)],
            normal,
            device,
        )),
        Shape::Tokens { length, .. } => {
            Value::Tokens(Tensor::zeros([batch_size, size(length)], device))
        }
    }
}

fn prediction(value: Value) -> Vec<usize> {
    match value {
        Value::Features(x) => x.dims()[1..].to_vec(),
        Value::Sequence(x) => x.dims()[1..].to_vec(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn every_family_predicts_what_the_study_says() {
    let device = Device::flex().autodiff();
    for workload in every_family() {
        let network = workload.network().expect("fits");
        let net = Net::new(&network, &device);
        let expected: Vec<usize> = match network.output {
            crate::study::Shape::Features { width } => vec![width as usize],
            crate::study::Shape::Sequence { length, width } => {
                vec![length as usize, width as usize]
            }
            other => panic!("{other}"),
        };
        let output = net.forward(input(&network, 3, &device));
        assert_eq!(prediction(output), expected, "{workload:?}");
        assert!(net.one_parameter().is_finite());
    }
}

#[test]
fn every_family_has_the_parameters_that_the_study_counts_and_each_gets_a_gradient() {
    struct Count<'a> {
        gradients: &'a burn::optim::GradientsParams,
        missing: usize,
        trained: usize,
    }
    impl ModuleVisitor for Count<'_> {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            if param.is_require_grad() {
                self.trained += param.val().shape().num_elements();
                if self.gradients.get::<D>(param.id).is_none() {
                    self.missing += 1;
                }
            }
        }
    }
    let device = Device::flex().autodiff();
    for workload in every_family() {
        let network = workload.network().expect("fits");
        let net = Net::new(&network, &device);
        let loss = match net.forward(input(&network, 4, &device)) {
            Value::Features(x) => x.square().mean(),
            Value::Sequence(x) => x.square().mean(),
            other => panic!("{other:?}"),
        };
        let gradients = burn::optim::GradientsParams::from_grads(loss.backward(), &net);
        let mut count = Count {
            gradients: &gradients,
            missing: 0,
            trained: 0,
        };
        net.visit(&mut count);
        assert_eq!(count.missing, 0, "{workload:?}");
        assert_eq!(count.trained as u64, network.parameters(), "{workload:?}");
    }
}

#[test]
fn weights_have_the_variance_of_their_layer_and_biases_are_zero() {
    let device = Device::flex();
    for (activation, gain) in [
        ("relu", 2.0),
        ("gelu", 2.0),
        ("tanh", 1.0),
        ("sigmoid", 1.0),
    ] {
        let workload = workload(
            json!({"builtin": "synthetic", "features": 400}),
            json!({"family": "mlp", "hidden": [300, 200], "activation": activation}),
        );
        let net = Net::new(&workload.network().expect("fits"), &device);
        let layers: Vec<&Linear> = net
            .layers
            .iter()
            .filter_map(|node| match node {
                Node::Linear(linear) => Some(linear),
                _ => None,
            })
            .collect();
        for (layer, expected) in layers
            .into_iter()
            .zip([gain / 400.0, gain / 300.0, 1.0 / 200.0])
        {
            let measured = layer.weight.val().square().mean().into_scalar::<f32>();
            assert!(
                (measured / expected - 1.0).abs() < 0.15,
                "{activation:?}: {measured} against {expected}"
            );
            let bias = layer.bias.as_ref().expect("has a bias").val();
            assert_eq!(bias.abs().max().into_scalar::<f32>(), 0.0);
        }
    }
}

#[test]
fn a_causal_network_does_not_see_what_comes_later_and_an_encoder_does() {
    let device = Device::flex();
    let length = 6;
    let tokens = |last: i64| {
        let tokens: Vec<i64> = (0..length as i64 - 1).chain([last]).collect();
        Value::Tokens(Tensor::<1, Int>::from_data(tokens.as_slice(), &device).unsqueeze())
    };
    let changed = |net: &Net| {
        let of = |last: i64| match net.forward(tokens(last)) {
            Value::Sequence(x) => x,
            other => panic!("{other:?}"),
        };
        let difference = (of(1) - of(9)).abs().max_dim(2);
        let values: Vec<f32> = difference.into_data().try_to_vec().expect("is f32");
        values
    };
    let text = || json!({"builtin": "markov_text", "sequence_length": length});
    let lm = workload(text(), json!({"family": "transformer_lm"}));
    let net = Net::new(&lm.network().expect("fits"), &device);
    let differences = changed(&net);
    assert!(differences[..length - 1].iter().all(|value| *value == 0.0));
    assert!(differences[length - 1] > 0.0);

    let seeing = workload(
        text(),
        json!({"family": "sequential", "layers": [
            {"layer": "embedding", "width": 8},
            {"layer": "self_attention", "heads": 2},
            {"layer": "output"}
        ]}),
    );
    let net = Net::new(&seeing.network().expect("fits"), &device);
    assert!(changed(&net).iter().all(|value| *value > 0.0));
}

#[test]
fn dropout_acts_in_training_only() {
    let workload = workload(
        json!({"builtin": "digits"}),
        json!({"family": "mlp", "dropout": 0.5}),
    );
    let device = Device::flex().autodiff();
    let net = Net::new(&workload.network().expect("fits"), &device);
    let image = Tensor::<2>::ones([4, 64], &device);
    let output = |net: &Net, image: Tensor<2>| match net.forward(Value::Features(image)) {
        Value::Features(x) => x.into_data(),
        other => panic!("{other:?}"),
    };
    assert_ne!(output(&net, image.clone()), output(&net, image.clone()));
    let net = net.valid();
    let image = image.inner();
    assert_eq!(output(&net, image.clone()), output(&net, image));
}
