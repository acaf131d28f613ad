"""A plain PEFT script with a rank-pruning method: only the marked line was added.

python examples/plain_trainer.py [lorpa | prilora | lora-drop | ...] [MODEL_FOLDER]
"""

import sys

from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
)

from peftprune import PruningCallback, load_task
from peftprune.models.load import load_model

method = sys.argv[1] if len(sys.argv) > 1 else "lorpa"
folder = sys.argv[2] if len(sys.argv) > 2 else load_model("minilm").source
task = load_task("entailment-mini")
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=task.num_labels)
model = get_peft_model(model, LoraConfig(task_type="SEQ_CLS", r=32, lora_alpha=64, target_modules=["query", "value"]))


def tokenise(rows):
    return tokenizer(rows["text_a"], rows["text_b"], truncation=True, max_length=64) | {"labels": rows["label"]}


train = task.train.select(range(480)).map(tokenise, batched=True, remove_columns=task.train.column_names)
trainer = Trainer(
    model=model,
    args=TrainingArguments("runs/plain", num_train_epochs=1, learning_rate=1e-3, report_to="none", save_strategy="no"),
    train_dataset=train,
    data_collator=DataCollatorWithPadding(tokenizer),
    callbacks=[PruningCallback(method, budget="rank=4")],  # <- the added line
)
trainer.train()
trainer.save_model("runs/plain/adapter")
