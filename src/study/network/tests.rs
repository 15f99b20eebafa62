use serde_json::json;

use super::*;

fn facts(input: Shape, target: Target) -> Facts {
    Facts {
        input,
        target,
        training_examples: 100,
        validation_examples: 10,
    }
}

fn image(channels: u64, side: u64) -> Shape {
    Shape::Image {
        channels,
        height: side,
        width: side,
    }
}

fn classes(count: u64) -> Target {
    Target::Classes { count }
}

fn text(length: u64, vocabulary: u64) -> Facts {
    facts(
        Shape::Tokens { length, vocabulary },
        Target::NextToken { vocabulary },
    )
}

fn model(value: serde_json::Value) -> Model {
    serde_json::from_value(value).expect("a model")
}

fn parameters(value: serde_json::Value, facts: &Facts) -> u64 {
    Network::new(&model(value), facts)
        .expect("fits")
        .parameters()
}

fn error(value: serde_json::Value, facts: &Facts) -> NetworkError {
    Network::new(&model(value), facts).expect_err("does not fit")
}

#[test]
fn resnets_have_the_published_numbers_of_parameters() {
    let cifar = facts(image(3, 32), classes(10));
    // The 0.27 million of He et al. 2016, table 6, counted out.
    assert_eq!(
        parameters(json!({"family": "resnet", "depth": 20}), &cifar),
        269_722
    );
    for (depth, millions) in [(32, 0.46), (44, 0.66), (56, 0.85), (110, 1.7)] {
        let counted = parameters(json!({"family": "resnet", "depth": depth}), &cifar) as f64 / 1e6;
        assert!((counted - millions).abs() < 0.051, "{depth}: {counted}");
    }
    let imagenet = facts(image(3, 224), classes(1000));
    for (depth, count) in [(18, 11_689_512), (34, 21_797_672), (50, 25_557_032)] {
        let posted = json!({"family": "resnet", "style": "imagenet", "depth": depth});
        assert_eq!(parameters(posted, &imagenet), count, "ResNet-{depth}");
    }
}

#[test]
fn transformers_have_the_published_numbers_of_parameters() {
    // ViT-S/16 has 22,050,664 with a class token and its position, 384 numbers each.
    let imagenet = facts(image(3, 224), classes(1000));
    let vit = json!({
        "family": "transformer_encoder", "width": 384, "depth": 12, "heads": 6, "patch_size": 16
    });
    assert_eq!(parameters(vit, &imagenet), 22_050_664 - 2 * 384);
    let gpt_2 = json!({"family": "transformer_lm", "width": 768, "depth": 12, "heads": 12});
    assert_eq!(parameters(gpt_2, &text(1024, 50_257)), 124_439_808);
}

#[test]
fn mlps_cnns_and_recurrent_networks_have_the_parameters_of_their_formulae() {
    let digits = facts(image(1, 8), classes(10));
    assert_eq!(
        parameters(json!({"family": "mlp", "hidden": [64, 32]}), &digits),
        64 * 64 + 64 + 64 * 32 + 32 + 32 * 10 + 10
    );
    assert_eq!(
        parameters(
            json!({"family": "cnn", "channels": [8, 16], "convolutions": 2}),
            &digits
        ),
        // Convolutions without a bias, each with a scale and a shift for each channel.
        9 * 8 + 9 * 8 * 8 + 9 * 8 * 16 + 9 * 16 * 16 + 2 * (8 + 8 + 16 + 16) + 16 * 10 + 10
    );
    // PyTorch's count for one layer: 4(IH + HH + 2H) and 3(IH + HH + 2H).
    for (cell, gates) in [("lstm", 4), ("gru", 3)] {
        assert_eq!(
            parameters(json!({"family": "rnn", "cell": cell, "units": 32}), &digits),
            gates * (8 * 32 + 32 * 32 + 2 * 32) + 32 * 10 + 10
        );
    }
    assert_eq!(
        parameters(
            json!({"family": "rnn", "units": 32, "embedding": 16}),
            &text(20, 50)
        ),
        50 * 16 + 4 * (16 * 32 + 32 * 32 + 2 * 32) + 32 * 50 + 50
    );
}

#[test]
fn a_sequential_network_is_the_same_as_the_family_it_spells_out() {
    let digits = facts(image(1, 8), classes(10));
    let spelled = model(json!({"family": "sequential", "layers": [
        {"layer": "flatten"},
        {"layer": "linear", "units": 64},
        {"layer": "activation", "function": "relu"},
        {"layer": "output"}
    ]}));
    let family = Model::mlp(vec![64]);
    assert_eq!(
        Network::new(&spelled, &digits).expect("fits"),
        Network::new(&family, &digits).expect("fits")
    );
}

#[test]
fn every_mismatch_is_named_by_its_layer() {
    let digits = facts(image(1, 8), classes(10));
    let table: Vec<(serde_json::Value, Facts, &str, &str)> = vec![
        (
            json!([{"layer": "linear", "units": 4}, {"layer": "output"}]),
            digits,
            "/layers/0",
            "linear: needs features or a sequence",
        ),
        (
            json!([{"layer": "flatten"}, {"layer": "conv2d", "channels": 4}]),
            digits,
            "/layers/1",
            "conv2d: needs an image, but what comes before it gives 64 features",
        ),
        (
            json!([{"layer": "conv2d", "channels": 4, "kernel": 9, "padding": 0}]),
            digits,
            "/layers/0",
            "a window of 9×9 is larger than the image of 8×8",
        ),
        (
            json!([
                {"layer": "residual", "layers": [{"layer": "conv2d", "channels": 4}]},
                {"layer": "global_avg_pool"}, {"layer": "output"}
            ]),
            digits,
            "/layers/0",
            "its layers give an image of 4×8×8, but its shortcut gives an image of 1×8×8",
        ),
        (
            json!([
                {"layer": "rows"},
                {"layer": "residual", "layers": [
                    {"layer": "norm", "normalization": {"kind": "layer"}},
                    {"layer": "self_attention", "heads": 3}
                ]}
            ]),
            digits,
            "/layers/1/layers/1",
            "3 heads do not divide the width, 8",
        ),
        (
            json!([{"layer": "patches", "size": 3, "width": 8}]),
            digits,
            "/layers/0",
            "do not cut an image of 8×8 evenly",
        ),
        (
            json!([{"layer": "conv2d", "channels": 6},
                   {"layer": "norm", "normalization": {"kind": "group", "groups": 4}}]),
            digits,
            "/layers/1",
            "4 groups do not divide 6 channels",
        ),
        (
            json!([{"layer": "flatten"}, {"layer": "linear", "units": 7}]),
            digits,
            "/layers/1",
            "the network gives 7 features, but classification of this data set needs 10 features",
        ),
        (
            json!([{"layer": "linear", "units": 8}, {"layer": "unembedding"}]),
            text(5, 9),
            "/layers/0",
            "linear: needs features or a sequence",
        ),
        (
            json!([{"layer": "embedding", "width": 4}, {"layer": "linear", "units": 8},
                   {"layer": "unembedding"}]),
            text(5, 9),
            "/layers/2",
            "needs the width of the embedding, 4; what comes before it is 8 wide",
        ),
    ];
    for (layers, facts, pointer, detail) in table {
        let found = error(json!({"family": "sequential", "layers": layers}), &facts);
        assert_eq!(found.pointer, pointer, "{found}");
        assert!(found.detail.contains(detail), "{found}");
    }
}

#[test]
fn a_family_says_what_it_cannot_read() {
    let features = facts(Shape::Features { width: 30 }, classes(2));
    for (family, words) in [
        (
            "cnn",
            "cnn reads images, but an example of this data set is 30 features",
        ),
        ("resnet", "resnet reads images"),
        ("transformer_encoder", "take \"mlp\""),
        ("rnn", "take \"mlp\""),
        ("transformer_lm", "take \"transformer_encoder\""),
    ] {
        let found = error(json!({"family": family}), &features);
        assert!(found.detail.contains(words), "{found}");
    }
    for family in ["mlp", "cnn", "resnet", "transformer_encoder"] {
        let found = error(json!({"family": family}), &text(8, 20));
        assert!(found.detail.contains("transformer_lm"), "{found}");
    }
    for (style, depth) in [("cifar", 21), ("imagenet", 20)] {
        let posted = json!({"family": "resnet", "style": style, "depth": depth});
        let found = error(posted, &facts(image(3, 32), classes(10)));
        assert_eq!(found.pointer, "/depth");
    }
}

#[test]
fn the_variance_of_weights_follows_what_comes_after() {
    let digits = facts(image(1, 8), classes(10));
    let network = Network::new(&model(json!({"family": "resnet"})), &digits).expect("fits");
    // The last convolution of a block feeds the activation after the sum.
    let block = network
        .layers
        .iter()
        .find(|placed| !placed.inside.is_empty())
        .expect("has blocks");
    assert!(block.inside.iter().all(|placed| match placed.layer {
        Layer::Conv2d { .. } => placed.feeds_relu,
        _ => true,
    }));
    let rule = Initialisation::ByActivation;
    assert!((rule.deviation(50, 7, true) - 0.2).abs() < 1e-12);
    assert!((rule.deviation(100, 7, false) - 0.1).abs() < 1e-12);
    assert!((Initialisation::Xavier.deviation(150, 50, true) - 0.1).abs() < 1e-12);
    assert!((Initialisation::He.deviation(50, 7, false) - 0.2).abs() < 1e-12);
    assert_eq!(Initialisation::SmallNormal.deviation(5, 7, true), 0.02);
}

#[test]
fn multiplications_are_those_of_the_papers() {
    let count = |model: &Model, facts: &Facts| {
        let network = Network::new(model, facts).expect("fits");
        network.multiplications() as f64
    };
    let images = |side: u64, classes: u64| Facts {
        input: Shape::Image {
            channels: 3,
            height: side,
            width: side,
        },
        target: Target::Classes { count: classes },
        training_examples: 100,
        validation_examples: 10,
    };
    let digits = Facts {
        input: Shape::Features { width: 64 },
        ..images(8, 10)
    };
    assert_eq!(
        count(&Model::mlp(vec![64]), &digits),
        64.0 * 64.0 + 64.0 * 10.0
    );
    // He et al. 2016, table 1: 1.8, 3.6 and 3.8 billion at 224×224; with the stride in the 3×3 convolution of the
    // bottleneck, as here, 4.1.
    for (depth, billions) in [(18, 1.82), (34, 3.67), (50, 4.09)] {
        let model = serde_json::from_value(
            json!({"family": "resnet", "style": "imagenet", "depth": depth}),
        )
        .expect("a model");
        let found = count(&model, &images(224, 1000)) / 1e9;
        assert!((found / billions - 1.0).abs() < 0.01, "{depth}: {found}");
    }
}
